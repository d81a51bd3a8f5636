// The scheduler and the steps ahead of it, as the engine uses them.

#include <cstdio>
#include <deque>

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "cache_budget.h"
#include "small_engine.h"

namespace demiurgic::test {

namespace {

// A device that decodes by itself, far from the host: it knows what it was told, computes when it likes, in order, and
// tells what it has given when it likes.
class FarDevice : public DecodeLoop {
public:
    explicit FarDevice(Memory& cache) : cache_(cache) {}

    int64_t most_rows() const override { return 6; }
    int64_t most_blocks() const override { return most_blocks_; }

    void begin(const std::vector<LoopRow>& rows) override {
        check(queue_.empty() && results_.empty(), "rows are taken up while a step is in flight");
        rows_.clear();
        most_blocks_ = 1;
        for (const LoopRow& row : rows) {
            rows_.push_back({{row.tokens, row.tokens + row.num_tokens},
                             row.options.seed,
                             row.edits,
                             row.blocks,
                             row.limit,
                             row.num_tokens >= row.limit});
            most_blocks_ = std::max(most_blocks_, static_cast<int64_t>(row.blocks.size()) + 1);
        }
    }

    void extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) override {
        queue_.push_back([this, row, blocks, limit] {
            Row& extended = rows_.at(row);
            check(std::equal(extended.blocks.begin(), extended.blocks.end(), blocks.begin()), "a row's blocks change");
            check(static_cast<int64_t>(blocks.size()) <= most_blocks_,
                  "a row has more blocks than the device has room for");
            extended.blocks = blocks;
            extended.limit = limit;
        });
    }

    void rest(int64_t row) override {
        queue_.push_back([this, row] { rows_.at(row).rests = true; });
    }

    void launch() override {
        queue_.push_back([this] { step(); });
    }

    bool arrived() override {
        random_ = mix(random_);
        for (uint64_t i = random_ % 3; i > 0 && !queue_.empty(); --i) run_next();
        return !results_.empty() && random_ % 5 == 0;
    }

    std::vector<StepResult> read() override {
        std::vector<StepResult> results = std::move(results_.front());
        results_.pop_front();
        return results;
    }

    // Nobody wants the results, but what is launched is computed.
    void drop() override {
        while (!queue_.empty()) run_next();
        results_.clear();
    }

    void forget() override { rows_.clear(); }

private:
    struct Row {
        std::vector<int64_t> tokens;
        uint64_t seed;
        std::vector<StepEdit> edits;
        std::vector<int32_t> blocks;
        int64_t limit;
        bool rests;
    };

    void run_next() {
        const std::function<void()> next = std::move(queue_.front());
        queue_.pop_front();
        next();
    }

    static int64_t slot(const Row& row, int64_t position) {
        return row.blocks.at(position / kBlockSize) * kBlockSize + position % kBlockSize;
    }

    void step() {
        std::vector<StepResult>& results = results_.emplace_back(rows_.size(), StepResult{});
        for (size_t i = 0; i < rows_.size(); ++i) {
            if (!rows_[i].rests)
                cache_.write(slot(rows_[i], static_cast<int64_t>(rows_[i].tokens.size()) - 1), rows_[i].tokens.back());
        }
        for (size_t i = 0; i < rows_.size(); ++i) {
            if (!rows_[i].rests) results[i] = decode(rows_[i]);
        }
    }

    StepResult decode(Row& row) {
        const int64_t size = static_cast<int64_t>(row.tokens.size());
        for (int64_t i = 0; i < size; ++i) {
            check(cache_.slots.at(slot(row, i)).token == row.tokens[i],
                  "the cache of a row ahead does not hold its token");
        }
        const int64_t token = next_token(row.tokens, row.seed);
        row.tokens.push_back(token);
        row.rests = size + 1 >= row.limit;
        for (const StepEdit& edit : row.edits) row.rests |= edit.ends && edit.token == token;
        return {token, 0.0f, 0.0f, row.rests, 0, size};
    }

    Memory& cache_;
    int64_t most_blocks_ = 1;
    uint64_t random_ = 1;
    std::vector<Row> rows_;
    std::deque<std::function<void()>> queue_;
    std::deque<std::vector<StepResult>> results_;
};

std::unique_ptr<DecodeLoop> far_device(Memory& cache) { return std::make_unique<FarDevice>(cache); }

// What threads do to one another depends on when they run: again, until all that a test is about has happened.
template <class Seen>
void use_until(TestEngine& engine, bool keeps_prefixes, const char* what, Seen seen) {
    for (int round = 0; round < 50 && !seen(); ++round) use_by_many_threads(engine, keeps_prefixes);
    check(seen(), std::string(what) + ": the test shows little");
}

void many_threads_get_what_one_would() {
    TestEngine engine(/*num_blocks=*/24, /*max_step_tokens=*/40);
    use_until(engine, false, "no sequence was preempted, forked or interrupted",
              [&] { return engine.num_preemptions() > 0 && engine.num_copies() > 0 && engine.num_interrupted() > 0; });
    check(engine.blocks().num_used() == 0, std::to_string(engine.blocks().num_used()) + " blocks are held by nobody");
}

void many_threads_share_kept_prefixes() {
    TestEngine engine(/*num_blocks=*/30, /*max_step_tokens=*/40, /*keeps_prefixes=*/true);
    use_until(engine, true, "no prefix was found or evicted, or no sequence preempted",
              [&] { return engine.num_hits() > 0 && engine.kept().num_evicted() > 0 && engine.num_preemptions() > 0; });
    check(engine.blocks().num_used() == engine.kept().num_blocks(), "blocks are held by nobody");
    engine.drop_prefixes();
    check(engine.blocks().num_used() == 0 && engine.kept().num_tokens() == 0, "dropped prefixes hold blocks");
}

void many_threads_run_ahead(bool keeps_prefixes) {
    TestEngine engine(/*num_blocks=*/40, /*max_step_tokens=*/40, keeps_prefixes, far_device);
    use_until(engine, keeps_prefixes, "no step was interrupted or ran ahead",
              [&] { return engine.num_interrupted() > 0 && engine.num_steps_ahead() > 0; });
    check(engine.blocks().num_used() == (keeps_prefixes ? engine.kept().num_blocks() : 0), "blocks are held by nobody");
}

void many_threads_get_ahead_what_one_would() { many_threads_run_ahead(false); }

void many_threads_share_kept_prefixes_ahead() { many_threads_run_ahead(true); }

// By one thread, so that what happens is the same each time; in a cache that is too small, and in one where nobody waits
// for a block.
void one_thread_runs_ahead() {
    int64_t num_preempted = 0, num_surplus = 0, num_ahead = 0, num_launched = 0;
    for (const int64_t num_blocks : {14, 80}) {
        TestEngine engine(num_blocks, /*max_step_tokens=*/40, /*keeps_prefixes=*/num_blocks == 80, far_device);
        use(engine, /*thread=*/9, /*num_calls=*/300, /*keeps_prefixes=*/num_blocks == 80);
        num_preempted += engine.num_preemptions();
        num_surplus += engine.num_surplus();
        num_ahead += engine.num_steps_ahead();
        num_launched += engine.num_launched();
    }
    std::printf("        %d of %d launched steps ran ahead, %d tokens were surplus\n", static_cast<int>(num_ahead),
                static_cast<int>(num_launched), static_cast<int>(num_surplus));
    check(num_preempted > 0 && num_surplus > 20 && num_ahead > 200 && num_launched > num_ahead + 200,
          "too little ran ahead, or was surplus or preempted: the test shows little");
}

// The index against a list of what it was given: the longest common prefix with any of it, in blocks that hold it.
void the_index_finds_the_longest_prefix() {
    for (uint64_t round = 0; round < 200; ++round) {
        KVBlocks blocks(kBlockSize);
        blocks.grow(400);
        PrefixIndex kept(blocks);
        std::vector<int64_t> cache(400 * kBlockSize, -1);
        std::vector<std::vector<int64_t>> given;
        uint64_t random = mix(round);
        const auto draw = [&](uint64_t end) { return static_cast<int64_t>((random = mix(random)) % end); };
        const auto text = [&] {
            std::vector<int64_t> tokens;
            if (!given.empty()) tokens = given[draw(given.size())];
            tokens.resize(tokens.empty() ? 0 : draw(tokens.size() + 1));
            for (int64_t more = draw(40); more > 0; --more) tokens.push_back(draw(2));
            return tokens;
        };
        const auto longest = [&](const std::vector<int64_t>& tokens) {
            int64_t most = 0;
            for (const std::vector<int64_t>& other : given) {
                const auto end = std::mismatch(tokens.begin(), tokens.end(), other.begin(), other.end()).first;
                most = std::max<int64_t>(most, end - tokens.begin());
            }
            return most;
        };
        for (int step = 0; step < 12; ++step) {
            const std::vector<int64_t> tokens = text();
            const int64_t limit = draw(tokens.size() + 1);
            const PrefixIndex::Prefix found = kept.find(tokens, limit);
            check(found.num_tokens == std::min(limit, longest(tokens)), "not the longest prefix was found");
            check(static_cast<int64_t>(found.blocks.size()) == blocks.blocks_for(found.num_tokens),
                  "blocks are missing");
            for (int64_t i = 0; i < found.num_tokens; ++i) {
                check(cache[found.blocks[i / kBlockSize] * kBlockSize + i % kBlockSize] == tokens[i],
                      "a block holds other tokens");
            }
            std::vector<int32_t> table;
            blocks.extend(table, static_cast<int64_t>(tokens.size()));
            for (size_t i = 0; i < tokens.size(); ++i)
                cache[table[i / kBlockSize] * kBlockSize + i % kBlockSize] = tokens[i];
            kept.keep(tokens, static_cast<int64_t>(tokens.size()), table);
            blocks.release(table);
            given.push_back(tokens);
            check(blocks.num_used() == kept.num_blocks(), "what is kept twice holds two blocks");
        }
        int64_t evicted = 0;
        while (kept.evict()) ++evicted;
        check(evicted == kept.num_evicted() && blocks.num_used() == 0 && kept.num_tokens() == 0,
              "not all can be evicted");
    }
}

// Those of the path that was used last go last, and from its end.
void the_least_recently_used_is_evicted_first() {
    KVBlocks blocks(kBlockSize);
    blocks.grow(10);
    PrefixIndex kept(blocks);
    const auto keep = [&](int64_t token, int64_t length) {
        std::vector<int32_t> table;
        blocks.extend(table, length);
        kept.keep(std::vector<int64_t>(length, token), length, table);
        blocks.release(table);
    };
    const auto left = [&](int64_t token) { return kept.find(std::vector<int64_t>(99, token), 99).num_tokens; };
    keep(1, 40);
    keep(2, 32);
    keep(3, 16);
    check(left(3) == 16 && left(1) == 40, "something is not kept");  // used now, so 2 is the oldest
    std::vector<int32_t> user = kept.find(std::vector<int64_t>(16, 3), 16).blocks;
    blocks.hold(user[0]);
    kept.evict();
    kept.evict();
    kept.evict();
    check(left(2) == 0, "the least recently used is kept");
    check(left(1) == 32, "the end of the next is kept");
    while (kept.evict()) {
    }
    check(left(3) == 16 && left(1) == 0, "a block in use was evicted, or one that is not is kept");
    blocks.release(user);
}

// ---- which blocks a table gets -----------------------------------------------------------------------------------

int64_t num_runs(const std::vector<int32_t>& table) {
    int64_t runs = table.empty() ? 0 : 1;
    for (size_t i = 1; i < table.size(); ++i) runs += table[i] != table[i - 1] + 1;
    return runs;
}

// Tables of a number of blocks each, which grow by one in turns.
void grow_in_turns(KVBlocks& blocks, std::vector<std::vector<int32_t>>& tables, int64_t num_blocks) {
    for (int64_t size = 1; size <= num_blocks; ++size) {
        for (std::vector<int32_t>& table : tables) {
            check(blocks.extend(table, size * kBlockSize, num_blocks * kBlockSize), "there is room, but none is found");
        }
    }
}

void rows_that_grow_in_turns_lie_in_one_run_each() {
    for (const int64_t num_rows : {1, 3, 8}) {
        KVBlocks blocks(kBlockSize);
        blocks.grow(num_rows * 5);  // what the rows want, and no more
        std::vector<std::vector<int32_t>> tables(num_rows);
        grow_in_turns(blocks, tables, 5);
        for (const auto& table : tables) check(num_runs(table) == 1, "a row's blocks are scattered");
        check(blocks.num_free() == 0, "the rows hold other blocks than they should");
        // One ended before it was long: the next takes its place.
        blocks.release(tables.front());
        tables.front().clear();
        check(blocks.extend(tables.front(), 5 * kBlockSize), "a row that ended holds blocks");
        check(num_runs(tables.front()) == 1, "the next row's blocks are scattered");
    }
}

void a_row_that_ends_early_leaves_its_promise() {
    KVBlocks blocks(kBlockSize);
    blocks.grow(8);
    std::vector<int32_t> first, second;
    blocks.extend(first, 1, 8 * kBlockSize);  // promised everything
    blocks.release(first);
    for (int64_t size = 1; size <= 8; ++size) blocks.extend(second, size * kBlockSize, 8 * kBlockSize);
    check(num_runs(second) == 1 && second.front() == 0, "blocks are promised to a row that ended");
}

void copies_lie_in_the_prompts_run_and_one_of_their_own() {
    for (const int64_t prompt : {40, 48}) {  // the last block partly filled, and full
        KVBlocks blocks(kBlockSize);
        const int64_t most = 7 * kBlockSize, num_copies = 4;
        blocks.grow(7 + (num_copies - 1) * (7 - prompt / kBlockSize));
        std::vector<std::vector<int32_t>> rows(num_copies);
        std::vector<BlockCopy> copies;
        blocks.extend(rows[0], prompt, most);
        std::vector<int32_t> shared = blocks.share(rows[0], prompt);
        for (int64_t i = 1; i < num_copies; ++i) {
            check(blocks.fork(shared, prompt, rows[i], copies, most), "there is no room for a copy");
        }
        blocks.unshare(shared);  // the leader keeps its promise
        for (int64_t length = prompt + 1; length <= most; ++length) {
            for (auto& row : rows) check(blocks.extend(row, length, most), "there is no room for a copy to grow");
        }
        for (const auto& row : rows) check(num_runs(row) <= 2, "a copy's own blocks are scattered");
        check(blocks.num_free() == 0, "copies hold other blocks than they should");
    }
}

void what_a_draft_took_is_promised_again() {
    KVBlocks blocks(kBlockSize);
    blocks.grow(8);
    std::vector<int32_t> row, other;
    const int64_t most = 4 * kBlockSize;
    blocks.extend(row, kBlockSize, most);
    blocks.extend(row, 3 * kBlockSize, most);  // of drafts, which are refused
    blocks.shrink(row, kBlockSize);
    blocks.extend(other, most, most);
    blocks.extend(row, most, most);
    check(num_runs(row) == 1 && num_runs(other) == 1, "blocks were given away that a row is to grow into");
}

// Where more is promised than there is, rows share it, and everything is found to the last block.
void promises_are_broken_where_room_is_short() {
    KVBlocks blocks(kBlockSize);
    blocks.grow(16);
    std::vector<std::vector<int32_t>> tables(4);
    for (auto& table : tables) check(blocks.extend(table, 1, int64_t{1} << 62), "a block is free, but none is found");
    for (int64_t size = 2; size <= 4; ++size) {
        for (auto& table : tables) check(blocks.extend(table, size * kBlockSize, int64_t{1} << 62), "as above");
    }
    for (const auto& table : tables) check(num_runs(table) == 1, "rows that want as much as they can get do not share");
    std::vector<int32_t> late;
    check(!blocks.extend(late, 1) && late.empty(), "a block was given twice");
}

// Every operation in any order, against a plain count of references.
void blocks_are_counted_whatever_happens() {
    constexpr int64_t kCapacity = 40;
    for (uint64_t round = 0; round < 100; ++round) {
        uint64_t random = mix(round);
        const auto draw = [&](size_t end) { return static_cast<size_t>((random = mix(random)) % end); };
        KVBlocks blocks(kBlockSize);
        blocks.grow(kCapacity / 2);
        blocks.grow(kCapacity);
        std::vector<std::vector<int32_t>> rows(5), lists;
        std::vector<BlockCopy> copies;
        for (int step = 0; step < 200; ++step) {
            std::vector<int32_t>&row = rows[draw(5)], &other = rows[draw(5)];
            const int64_t length = static_cast<int64_t>(row.size()) * kBlockSize;
            switch (draw(6)) {
                case 0:
                case 1:
                    blocks.extend(row, length + 1 + draw(40), draw(2) ? draw(300) : 0);
                    break;
                case 2:
                    blocks.shrink(row, draw(length + 1));
                    break;
                case 3:
                    if (length > 0) lists.push_back(blocks.share(row, 1 + draw(length)));
                    break;
                case 4:
                    if (!lists.empty()) {
                        blocks.unshare(lists.back());
                        lists.pop_back();
                    }
                    break;
                case 5:
                    if (&row == &other || length == 0) break;
                    blocks.release(other);
                    blocks.fork(row, 1 + draw(length), other, copies, draw(300));
                    if (other.size() > 1 && other.back() != row.front()) blocks.exchange(other.back(), row.front());
                    break;
            }
            std::map<int32_t, int32_t> counts;
            for (const auto* tables : {&rows, &lists}) {
                for (const auto& table : *tables) {
                    for (const int32_t block : table) ++counts[block];
                }
            }
            for (const auto& [block, count] : counts) check(blocks.num_references(block) == count, "miscounted");
            check(blocks.num_used() == static_cast<int64_t>(counts.size()), "a block is free and in use, or neither");
        }
        for (auto& row : rows) blocks.release(row);
        for (auto& list : lists) blocks.unshare(list);
        check(blocks.num_used() == 0, "blocks are held by nobody");
    }
}

// From another thread while a step computes, as a signal or a closed stream does it.
void a_call_is_cancelled_by_another_thread() {
    for (uint64_t round = 0; round < 60; ++round) {
        TestEngine engine(/*num_blocks=*/40, /*max_step_tokens=*/40);
        Plan plan(round), other(round + 500);
        engine.add(plan.call);
        engine.add(other.call);
        std::string problem;
        std::thread canceller([&] { engine.cancel(*plan.call); });
        std::thread stepper([&] {
            try {
                while (engine.advance(*other.call, false)) {
                }
            } catch (const std::exception& error) {
                problem = error.what();
            }
        });
        while (engine.advance(*plan.call, false)) {
        }
        canceller.join();
        stepper.join();
        check(problem.empty(), problem);
        for (const Plan* each : {&plan, &other}) {
            for (const auto& row : each->call->sequences) check_row(*row);
        }
        check(engine.blocks().num_used() == 0, "blocks of a cancelled call are held by nobody");
    }
}

void what_does_not_fit_is_refused() {
    TestEngine engine(/*num_blocks=*/1, /*max_step_tokens=*/40);
    auto config = std::make_shared<GenerationConfig>();
    config->eos_token_id = Ids{};
    const auto call = std::make_shared<Call>();
    call->sequences.push_back(std::make_unique<Sequence>(std::vector<int64_t>(kBlockSize + 1, 5), config, 0));
    call->sequences.front()->call = call.get();
    engine.add(call);
    std::string message;
    try {
        engine.advance(*call, false);
    } catch (const NoRoom& error) {
        message = error.what();
    }
    check(message.find("A sequence of 17 tokens does not fit into a cache of 16 tokens.") != std::string::npos,
          "the message is: " + message);
}

void a_share_of_memory_is_left() {
    constexpr int64_t gib = int64_t{1} << 30, mib = int64_t{1} << 20;
    const auto left = [](int64_t free) { return free - cache_budget(free, /*on_gpu=*/true); };
    for (const int64_t free : {int64_t{1}, 80 * gib, 5 * gib, 4 * gib, gib + 1, gib, 100 * mib, int64_t{0}}) {
        check(cache_budget(free, /*on_gpu=*/false) == free / 10 * 9, "of host memory nine tenths");
        check(left(free) >= free / 10 && left(free) <= free, "between a tenth and all is left");
        check(left(free) >= std::min(512 * mib, free / 2), "512 MiB or half are left");
    }
    check(cache_budget(80 * gib, true) == 80 * gib / 10 * 9, "of a large device nine tenths");
    check(cache_budget(4 * gib, true) == 4 * gib - 512 * mib, "of a small one all but 512 MiB");
    check(cache_budget(100 * mib, true) == 50 * mib, "of a full one half");
    check(cache_budget(-5, true) == 0 && cache_budget(-5, false) == 0, "of nothing nothing");
}

// In torch's words.
void errors_of_memory_are_told_from_others() {
    const std::vector<std::string> missing = {
        "CUDA out of memory. Tried to allocate 2.00 GiB.",
        "MPS backend out of memory (MPS allocated: 9.06 GiB, max allowed: 9.07 GiB). Tried to allocate 1.00 GiB.",
        "Invalid buffer size: 14.90 GiB",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.",
    };
    const std::vector<std::string> others = {
        "",
        "The size of tensor a (3) must match the size of tensor b (4) at non-singleton dimension 0",
        "Placeholder storage has not been allocated on MPS device!",
    };
    for (const std::string& message : missing) check(says_out_of_memory(message), message);
    for (const std::string& message : others) check(!says_out_of_memory(message), message);
}

// However much is wanted, tries end, at `least` where nothing more can be had, and never below what is there.
void fewer_blocks_are_tried() {
    for (const int64_t held : {0, 1, 7, 100}) {
        for (const int64_t least : {0, 1, 50, 3000}) {
            std::optional<int64_t> next = 1000000;
            int64_t last = *next + 1, num_tries = 0;
            for (; next; next = fewer_blocks(*next, held, least), ++num_tries) {
                check(*next < last && *next >= std::max(held, least), "fewer, but enough");
                last = *next;
            }
            check(last == std::max(held, least), "the last try is for the least");
            check(num_tries < 30, "few tries");
        }
    }
    check(!fewer_blocks(5, 5, 3) && !fewer_blocks(5, 0, 5), "what is there is no try");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"many threads get what one would", many_threads_get_what_one_would},
            {"many threads share kept prefixes", many_threads_share_kept_prefixes},
            {"one thread runs ahead", one_thread_runs_ahead},
            {"many threads get ahead what one would", many_threads_get_ahead_what_one_would},
            {"many threads share kept prefixes ahead", many_threads_share_kept_prefixes_ahead},
            {"the index finds the longest prefix", the_index_finds_the_longest_prefix},
            {"the least recently used is evicted first", the_least_recently_used_is_evicted_first},
            {"rows that grow in turns lie in one run each", rows_that_grow_in_turns_lie_in_one_run_each},
            {"a row that ends early leaves its promise", a_row_that_ends_early_leaves_its_promise},
            {"copies lie in the prompt's run and one of their own", copies_lie_in_the_prompts_run_and_one_of_their_own},
            {"what a draft took is promised again", what_a_draft_took_is_promised_again},
            {"promises are broken where room is short", promises_are_broken_where_room_is_short},
            {"blocks are counted whatever happens", blocks_are_counted_whatever_happens},
            {"a call is cancelled by another thread", a_call_is_cancelled_by_another_thread},
            {"what does not fit is refused", what_does_not_fit_is_refused},
            {"a share of memory is left", a_share_of_memory_is_left},
            {"errors of memory are told from others", errors_of_memory_are_told_from_others},
            {"fewer blocks are tried", fewer_blocks_are_tried},
        },
        argc > 1 ? argv[1] : nullptr);
}
