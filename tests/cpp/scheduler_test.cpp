// The scheduler, as the engine uses it, by many threads: they add, step for everybody, wait, cancel and interrupt. The
// model is a cache of plain memory: a step writes what each token is, and reads back the whole context of each sequence.

#include "scheduler.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <thread>

#include "check.h"
#include "steps_ahead.h"
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

struct Slot {
    int64_t token;  // that stands there
    int64_t epoch;  // in which it was computed
};

// A device that decodes by itself, far from the host: it knows what it was told, computes when it likes, in order, and
// tells what it has given when it likes.
class FarDevice : public DecodeLoop {
public:
    explicit FarDevice(std::vector<Slot>& cache) : cache_(cache) {}

    void set_epoch(int64_t epoch) { epoch_ = epoch; }

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
        ++num_launched_;
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

    int64_t num_launched() const { return num_launched_; }

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

    Slot& slot(const Row& row, int64_t position) {
        return cache_.at(row.blocks.at(position / kBlockSize) * kBlockSize + position % kBlockSize);
    }

    void step() {
        std::vector<StepResult>& results = results_.emplace_back(rows_.size(), StepResult{});
        for (size_t i = 0; i < rows_.size(); ++i) {
            if (!rows_[i].rests) slot(rows_[i], rows_[i].tokens.size() - 1) = {rows_[i].tokens.back(), epoch_};
        }
        for (size_t i = 0; i < rows_.size(); ++i) {
            if (!rows_[i].rests) results[i] = decode(rows_[i]);
        }
    }

    StepResult decode(Row& row) {
        const int64_t size = static_cast<int64_t>(row.tokens.size());
        for (int64_t i = 0; i < size; ++i) {
            check(slot(row, i).token == row.tokens[i], "the cache of a row ahead does not hold its token");
        }
        const int64_t token = next_token(row.tokens, row.seed);
        row.tokens.push_back(token);
        row.rests = size + 1 >= row.limit;
        for (const StepEdit& edit : row.edits) row.rests |= edit.ends && edit.token == token;
        return {token, 0.0f, 0.0f, row.rests, 0, size};
    }

    std::vector<Slot>& cache_;
    int64_t epoch_ = 0, most_blocks_ = 1, num_launched_ = 0;
    uint64_t random_ = 1;
    std::vector<Row> rows_;
    std::deque<std::function<void()>> queue_;
    std::deque<std::vector<StepResult>> results_;
};

// The locks of csrc/engine.cpp, under the same names, around the real scheduler.
class TestEngine {
public:
    // `ahead`: steps run ahead where they can.
    TestEngine(int64_t num_blocks, int64_t max_step_tokens, bool keeps_prefixes = false, bool ahead = false)
        : scheduler_(blocks_, max_step_tokens, keeps_prefixes ? &kept_.emplace(blocks_) : nullptr), ahead_(ahead) {
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
                step(lock, interrupt, call);
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
    int64_t num_launched() const { return device_.num_launched(); }
    int64_t num_steps_ahead() const { return num_steps_ahead_; }
    int64_t num_surplus() const { return num_surplus_; }  // tokens

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

    void step(std::unique_lock<std::mutex>& lock, bool interrupt, const Call& call) {
        const Stepping stepping(*this, lock);
        const std::vector<Work> work = scheduler_.plan();
        const int64_t epoch = kept_ ? kept_->epoch() : 0;
        const bool ahead = ahead_ && StepsAhead::takes(work, device_);
        if (ahead) scheduler_.make_room_ahead(work);
        lock.unlock();
        for (const BlockCopy& copy : scheduler_.pending_copies()) {
            check(copy.from != copy.to, "a block is copied onto itself");
            std::copy_n(cache_.begin() + copy.from * kBlockSize, kBlockSize, cache_.begin() + copy.to * kBlockSize);
            ++num_copies_;
        }
        scheduler_.pending_copies().clear();
        check_plan(work);
        if (ahead) {
            device_.set_epoch(epoch);
            return step_ahead(work, lock, interrupt, call);
        }
        const std::vector<int64_t> tokens = compute(work, epoch);
        if (interrupt) {
            ++num_interrupted_;
            throw Interrupted{};
        }
        lock.lock();
        commit(work, tokens);
    }

    void step_ahead(const std::vector<Work>& work, std::unique_lock<std::mutex>& lock, bool interrupt,
                    const Call& call) {
        uint64_t random = mix(static_cast<uint64_t>(device_.num_launched()));
        StepsAhead steps(device_, kBlockSize, /*vocab=*/1000);
        steps.launch(work);
        while (steps.any_in_flight()) {
            lock.lock();
            const bool goes_on = (random = mix(random)) % 16 != 0 && may_step_ahead(call) && steps.may_go_on();
            std::vector<Work> next = goes_on ? scheduler_.plan_ahead(steps.newest()) : std::vector<Work>();
            num_steps_ahead_ += !next.empty();
            lock.unlock();
            if (!next.empty()) steps.launch(std::move(next));
            const auto poll = [&] {
                if (!interrupt || (random = mix(random)) % 4 != 0) return;
                ++num_interrupted_;
                throw Interrupted{};
            };
            const size_t num_parts = steps.oldest().size();
            const StepsAhead::Results results = steps.read(poll);
            num_surplus_ += static_cast<int64_t>(num_parts - results.work.size());
            std::vector<int64_t> tokens;
            for (const Sample& sample : results.samples) tokens.push_back(sample.token);
            lock.lock();
            commit(results.work, tokens);
            step_done_.notify_all();
            lock.unlock();
        }
        lock.lock();
    }

    bool may_step_ahead(const Call& call) const {
        const auto cancelled = [](const std::shared_ptr<Call>& other) { return other->cancelled; };
        return !call.interruptible && !call.finished() && num_adding_ == 0 &&
               std::none_of(calls_.begin(), calls_.end(), cancelled);
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
            if (sequence.call->cancelled) continue;
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

    std::mutex mutex_;
    std::condition_variable step_done_;
    bool stepping_ = false;
    int64_t num_adding_ = 0;
    KVBlocks blocks_{kBlockSize};
    std::optional<PrefixIndex> kept_;
    Scheduler scheduler_;
    std::vector<std::shared_ptr<Call>> calls_;
    std::vector<Slot> cache_;  // No lock: the stepping thread's own
    const bool ahead_;
    FarDevice device_{cache_};
    int64_t num_copies_ = 0, num_interrupted_ = 0, num_steps_ahead_ = 0, num_surplus_ = 0;
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
        call->interruptible = draw(4) == 0;
        if (draw(2)) {  // nothing that a device could not follow
            config->repetition_context_size = std::nullopt;
            config->no_repeat_ngram_size = 0;
        }
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

void many_threads_run_ahead(bool keeps_prefixes) {
    TestEngine engine(/*num_blocks=*/40, /*max_step_tokens=*/40, keeps_prefixes, /*ahead=*/true);
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
        TestEngine engine(num_blocks, /*max_step_tokens=*/40, /*keeps_prefixes=*/num_blocks == 80, /*ahead=*/true);
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
