// The scheduler, as the engine uses it, by many threads: they add, step for everybody, wait, cancel and interrupt. The
// model is a cache of plain memory: a step writes what each token is, and reads back the whole context of each sequence.

#include "scheduler.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

#include "cache_budget.h"
#include "check.h"
#include "stopping.h"

namespace demiurgic::test {

namespace {

constexpr int64_t kBlockSize = 16;

uint64_t mix(uint64_t z) {  // splitmix64 (S. Vigna)
    z += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

// The token after `tokens`, which the model of this test gives.
int64_t next_token(const std::vector<int64_t>& tokens, uint64_t seed) {
    uint64_t hash = seed;
    for (const int64_t token : tokens) hash = mix(hash ^ static_cast<uint64_t>(token));
    return static_cast<int64_t>(hash % 1000);
}

struct Interrupted {};

// The locks of csrc/engine.cpp, under the same names, around the real scheduler.
class TestEngine {
public:
    TestEngine(int64_t num_blocks, int64_t max_step_tokens, bool keeps_prefixes = false)
        : scheduler_(blocks_, max_step_tokens, keeps_prefixes ? &kept_.emplace(blocks_) : nullptr) {
        blocks_.grow(num_blocks);
        cache_.resize(num_blocks * kBlockSize, Slot{-1, -1});
    }

    // The weights have changed: what was computed before is of use to nobody who starts now.
    void drop_prefixes() {
        const std::lock_guard lock(mutex_);
        kept_->clear();
    }

    void add(const std::shared_ptr<Call>& call) {
        std::unique_lock lock(mutex_);
        ++num_adding_;
        while (stepping_) step_done_.wait(lock);
        --num_adding_;
        for (const auto& sequence : call->sequences) {
            ++call->num_unfinished;
            scheduler_.add(*sequence);
            const FinishReason reason = reason_to_stop(*sequence);
            if (reason != FinishReason::none) finish(*sequence, reason);
        }
        if (!call->finished()) calls_.push_back(call);
        step_done_.notify_all();
    }

    // `interrupt`: the step that this thread makes breaks off in the middle.
    bool advance(Call& call, bool interrupt) {
        std::unique_lock lock(mutex_);
        const int64_t steps_before = call.num_steps;
        while (!call.finished() && call.num_steps == steps_before) {
            if (stepping_ || num_adding_ > 0) {
                step_done_.wait(lock);
            } else {
                step(lock, interrupt);
            }
        }
        return !call.finished();
    }

    void cancel(Call& call) {
        const std::lock_guard lock(mutex_);
        call.cancelled = true;
        if (!stepping_) remove_ended_calls();
        step_done_.notify_all();
    }

    // Once no thread is in here any more.
    const KVBlocks& blocks() const { return blocks_; }
    int64_t num_preemptions() const { return scheduler_.num_preemptions(); }
    int64_t num_copies() const { return num_copies_; }
    int64_t num_hits() const { return scheduler_.num_hits(); }
    const PrefixIndex& kept() const { return *kept_; }
    int64_t num_interrupted() const { return num_interrupted_; }

private:
    class Stepping {
    public:
        Stepping(TestEngine& engine, std::unique_lock<std::mutex>& lock) : engine_(engine), lock_(lock) {
            engine_.stepping_ = true;
        }
        ~Stepping() {
            if (!lock_.owns_lock()) lock_.lock();
            engine_.stepping_ = false;
            engine_.remove_ended_calls();
            engine_.step_done_.notify_all();
        }

    private:
        TestEngine& engine_;
        std::unique_lock<std::mutex>& lock_;
    };

    void step(std::unique_lock<std::mutex>& lock, bool interrupt) {
        const Stepping stepping(*this, lock);
        const std::vector<Work> work = scheduler_.plan();
        const int64_t epoch = kept_ ? kept_->epoch() : 0;
        lock.unlock();
        for (const BlockCopy& copy : scheduler_.pending_copies()) {
            check(copy.from != copy.to, "a block is copied onto itself");
            std::copy_n(cache_.begin() + copy.from * kBlockSize, kBlockSize, cache_.begin() + copy.to * kBlockSize);
            ++num_copies_;
        }
        scheduler_.pending_copies().clear();
        check_plan(work);
        const std::vector<int64_t> tokens = compute(work, epoch);
        if (interrupt) {
            ++num_interrupted_;
            throw Interrupted{};
        }
        lock.lock();
        commit(work, tokens);
    }

    int64_t slot(const Sequence& sequence, int64_t position) const {
        return sequence.blocks.at(position / kBlockSize) * kBlockSize + position % kBlockSize;
    }

    // Nobody writes to a block that stands in another sequence's table.
    void check_plan(const std::vector<Work>& work) const {
        std::map<int32_t, int> users;
        for (const Work& part : work) {
            for (const int32_t block : part.sequence->blocks) ++users[block];
        }
        for (const Work& part : work) {
            for (int64_t position = part.start; position < part.start + part.count; ++position) {
                check(users[part.sequence->blocks.at(position / kBlockSize)] == 1, "a step writes to a shared block");
            }
        }
    }

    // A token for each sequence that gets one; -1 for the others. `epoch`: which weights there are.
    std::vector<int64_t> compute(const std::vector<Work>& work, int64_t epoch) {
        for (const Work& part : work) {
            for (int64_t i = part.start; i < part.start + part.count; ++i) {
                cache_[slot(*part.sequence, i)] = {part.sequence->tokens[i], epoch};
            }
        }
        std::vector<int64_t> tokens;
        for (const Work& part : work) {
            const Sequence& sequence = *part.sequence;
            for (int64_t i = 0; i < part.start + part.count; ++i) {
                const Slot& found = cache_[slot(sequence, i)];
                check(found.token == sequence.tokens[i],
                      "the cache of a sequence does not hold its token " + std::to_string(i));
                check(found.epoch >= sequence.epoch, "a sequence found what older weights have computed");
            }
            const bool gives_token = !sequence.scored && part.gives_token();
            tokens.push_back(gives_token ? next_token(sequence.tokens, sequence.seed) : -1);
        }
        return tokens;
    }

    void commit(const std::vector<Work>& work, const std::vector<int64_t>& tokens) {
        std::map<Call*, bool> calls;
        for (const Work& part : work) {
            calls[part.sequence->call] = true;
            scheduler_.computed(part);
        }
        for (const auto& [call, in_step] : calls) ++call->num_steps;
        for (size_t i = 0; i < work.size(); ++i) {
            Sequence& sequence = *work[i].sequence;
            if (tokens[i] >= 0) sequence.append(tokens[i]);
            if (tokens[i] < 0 && !sequence.scored) continue;
            const FinishReason reason = reason_to_stop(sequence);
            if (reason != FinishReason::none) finish(sequence, reason);
        }
    }

    void finish(Sequence& sequence, FinishReason reason) {
        sequence.finish_reason = reason;
        scheduler_.remove(sequence);
        --sequence.call->num_unfinished;
    }

    void remove_ended_calls() {
        for (const auto& call : calls_) {
            if (!call->cancelled) continue;
            for (const auto& sequence : call->sequences) {
                if (!sequence->finished()) finish(*sequence, FinishReason::cancelled);
            }
        }
        std::erase_if(calls_, [](const auto& call) { return call->finished(); });
    }

    struct Slot {
        int64_t token;  // that stands there
        int64_t epoch;  // in which it was computed
    };

    std::mutex mutex_;
    std::condition_variable step_done_;
    bool stepping_ = false;
    int64_t num_adding_ = 0;
    KVBlocks blocks_{kBlockSize};
    std::optional<PrefixIndex> kept_;
    Scheduler scheduler_;
    std::vector<std::shared_ptr<Call>> calls_;
    std::vector<Slot> cache_;  // No lock: the stepping thread's own
    int64_t num_copies_ = 0, num_interrupted_ = 0;
};

// One call, drawn from a number: prompts, copies of each, options.
struct Plan {
    // `alike`: prompts begin as others do.
    explicit Plan(uint64_t number, bool alike = false) : random(mix(number)) {
        auto config = std::make_shared<GenerationConfig>();
        config->max_new_tokens = draw(40);
        config->eos_token_id = Ids{1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
        config->stop_token_ids = {11, 12, 13};
        config->repetition_penalty = draw(2) ? 1.0 : 1.3;
        config->repetition_context_size = 5;
        config->no_repeat_ngram_size = draw(4);
        config->use_cache = draw(8) != 0;
        scored = draw(5) == 0;
        const int64_t copies = scored ? 1 : 1 + draw(4), num_prompts = 1 + draw(3);
        call->max_running = 1 + draw(6);
        for (int64_t i = 0; i < num_prompts; ++i) {
            std::vector<int64_t> prompt;
            const int64_t length = 1 + draw(100);
            const int64_t num_alike = alike ? draw(length + 1) : 0, kind = draw(2);
            for (int64_t j = 0; j < length; ++j) prompt.push_back(j < num_alike ? 14 + kind : 100 + draw(900));
            const auto shared = copies > 1 && config->use_cache ? std::make_shared<SharedPrompt>() : nullptr;
            for (int64_t copy = 0; copy < copies; ++copy) {
                auto sequence = std::make_unique<Sequence>(prompt, config, static_cast<uint64_t>(draw(1 << 30)));
                sequence->call = call.get();
                sequence->scored = scored;
                sequence->shared_prompt = shared;
                if (shared) ++shared->num_members;
                call->sequences.push_back(std::move(sequence));
            }
        }
    }

    int64_t draw(int64_t end) { return static_cast<int64_t>((random = mix(random)) % static_cast<uint64_t>(end)); }

    uint64_t random;
    bool scored = false;
    std::shared_ptr<Call> call = std::make_shared<Call>();
};

// The row as it is when it is generated alone.
void check_row(const Sequence& row) {
    std::vector<int64_t> prompt(row.tokens.begin(), row.tokens.begin() + row.prompt_length);
    Sequence alone(prompt, row.config, row.seed);
    while (!row.scored && reason_to_stop(alone) == FinishReason::none) alone.append(next_token(alone.tokens, row.seed));
    if (row.finish_reason == FinishReason::cancelled) {
        check(row.size() <= alone.size(), "a cancelled row went on after its end");
        alone.tokens.resize(row.size());
    } else {
        check(row.finish_reason == (row.scored ? FinishReason::length : reason_to_stop(alone)),
              "a row ended for another reason than alone");
        const std::vector<TokenEdit>&ours = row.edits.all(), &its = alone.edits.all();
        const auto same = [](const TokenEdit& a, const TokenEdit& b) {
            return a.token == b.token && a.repetition == b.repetition && a.bans == b.bans;
        };
        check(std::equal(ours.begin(), ours.end(), its.begin(), its.end(), same), "a row has other edits than alone");
    }
    check(row.tokens == alone.tokens, "a row has other tokens than alone");
    check(row.blocks.empty(), "a row that ended holds blocks");
}

// What one thread of the user does.
void use(TestEngine& engine, int64_t thread, int64_t num_calls, bool keeps_prefixes) {
    for (int64_t i = 0; i < num_calls; ++i) {
        Plan plan(static_cast<uint64_t>(thread * 1000 + i), keeps_prefixes);
        if (keeps_prefixes && plan.draw(8) == 0) engine.drop_prefixes();
        engine.add(plan.call);
        const int64_t cancelled_after = plan.draw(4) == 0 ? plan.draw(10) : -1;
        for (int64_t steps = 0;; ++steps) {
            if (steps == cancelled_after) engine.cancel(*plan.call);
            try {
                if (!engine.advance(*plan.call, plan.draw(10) == 0)) break;
            } catch (const Interrupted&) {
            }
        }
        for (const auto& row : plan.call->sequences) check_row(*row);
    }
}

void use_by_many_threads(TestEngine& engine, bool keeps_prefixes) {
    constexpr int kThreads = 4;
    constexpr int64_t kCalls = 60;
    std::vector<std::string> problems(kThreads);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&engine, &problems, keeps_prefixes, i] {
            try {
                use(engine, i, kCalls, keeps_prefixes);
            } catch (const std::exception& error) {
                problems[i] = error.what();
                std::fprintf(stderr, "%s\n", error.what());
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& problem : problems) check(problem.empty(), problem);
}

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
            {"fewer blocks are tried", fewer_blocks_are_tried},
        },
        argc > 1 ? argv[1] : nullptr);
}
