// The scheduler and the steps ahead of it, as the engine uses them.

#include <cstdio>
#include <deque>

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

void many_threads_get_what_one_would() {
    TestEngine engine(/*num_blocks=*/24, /*max_step_tokens=*/40);
    use_by_many_threads(engine, false);
    check(engine.blocks().num_used() == 0, std::to_string(engine.blocks().num_used()) + " blocks are held by nobody");
    check(engine.num_preemptions() > 0 && engine.num_copies() > 0 && engine.num_interrupted() > 0,
          "no sequence was preempted, forked or interrupted: the test shows little");
}

void many_threads_share_kept_prefixes() {
    TestEngine engine(/*num_blocks=*/30, /*max_step_tokens=*/40, /*keeps_prefixes=*/true);
    use_by_many_threads(engine, true);
    check(engine.blocks().num_used() == engine.kept().num_blocks(), "blocks are held by nobody");
    check(engine.num_hits() > 0 && engine.kept().num_evicted() > 0 && engine.num_preemptions() > 0,
          "no prefix was found or evicted, or no sequence preempted: the test shows little");
    engine.drop_prefixes();
    check(engine.blocks().num_used() == 0 && engine.kept().num_tokens() == 0, "dropped prefixes hold blocks");
}

void many_threads_run_ahead(bool keeps_prefixes) {
    TestEngine engine(/*num_blocks=*/40, /*max_step_tokens=*/40, keeps_prefixes, far_device);
    use_by_many_threads(engine, keeps_prefixes);
    check(engine.blocks().num_used() == (keeps_prefixes ? engine.kept().num_blocks() : 0), "blocks are held by nobody");
    check(engine.num_interrupted() > 0 && engine.num_steps_ahead() > 0, "no step was interrupted or ran ahead");
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
            {"a call is cancelled by another thread", a_call_is_cancelled_by_another_thread},
            {"what does not fit is refused", what_does_not_fit_is_refused},
        },
        argc > 1 ? argv[1] : nullptr);
}
