#pragma once

// The engine's loop around the real scheduler, by many threads: they add, step for everybody, wait, cancel and interrupt. The
// model is a cache of plain memory: a step writes what each token is, and reads back the whole context of each sequence.

#include <algorithm>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "scheduler.h"
#include "steps_ahead.h"
#include "stopping.h"

namespace demiurgic::test {

constexpr int64_t kBlockSize = 16;

inline uint64_t mix(uint64_t z) {  // splitmix64 (S. Vigna)
    z += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

// The token after `tokens`, which the model of this test gives.
inline int64_t next_token(const std::vector<int64_t>& tokens, uint64_t seed) {
    uint64_t hash = seed;
    for (const int64_t token : tokens) hash = mix(hash ^ static_cast<uint64_t>(token));
    return static_cast<int64_t>(hash % 1000);
}

struct Interrupted {};

// The cache.
struct Memory {
    struct Slot {
        int64_t token;  // that stands there
        int64_t epoch;  // in which it was computed
    };
    std::vector<Slot> slots;
    int64_t epoch = 0;  // of the step that is made: which weights there are

    void write(int64_t slot, int64_t token) { slots.at(slot) = {token, epoch}; }
};

// Makes the device that runs steps ahead.
using MakeLoop = std::function<std::unique_ptr<DecodeLoop>(Memory&)>;

// The locks of csrc/engine.cpp, under the same names, around the real scheduler.
class TestEngine {
public:
    // With a loop, steps run ahead where they can.
    TestEngine(int64_t num_blocks, int64_t max_step_tokens, bool keeps_prefixes = false, const MakeLoop& make_loop = {})
        : scheduler_(blocks_, max_step_tokens, keeps_prefixes ? &kept_.emplace(blocks_) : nullptr) {
        blocks_.grow(num_blocks);
        cache_.slots.resize(num_blocks * kBlockSize, {-1, -1});
        if (make_loop) loop_ = make_loop(cache_);
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
            sequence->id = num_sequences_++;
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
    int64_t num_launched() const { return num_launched_; }
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
        cache_.epoch = kept_ ? kept_->epoch() : 0;
        const bool ahead = loop_ && StepsAhead::takes(work, *loop_);
        if (ahead) scheduler_.make_room_ahead(work);
        lock.unlock();
        for (const BlockCopy& copy : scheduler_.pending_copies()) {
            check(copy.from != copy.to, "a block is copied onto itself");
            std::copy_n(cache_.slots.begin() + copy.from * kBlockSize, kBlockSize,
                        cache_.slots.begin() + copy.to * kBlockSize);
            ++num_copies_;
        }
        scheduler_.pending_copies().clear();
        check_plan(work);
        if (ahead) return step_ahead(work, lock, interrupt, call);
        const std::vector<int64_t> tokens = compute(work);
        if (interrupt) {
            ++num_interrupted_;
            throw Interrupted{};
        }
        lock.lock();
        commit(work, tokens);
    }

    void step_ahead(const std::vector<Work>& work, std::unique_lock<std::mutex>& lock, bool interrupt,
                    const Call& call) {
        uint64_t random = mix(static_cast<uint64_t>(num_launched_));
        StepsAhead steps(*loop_, kBlockSize, /*vocab=*/1000);
        steps.launch(work);
        ++num_launched_;
        while (steps.any_in_flight()) {
            lock.lock();
            const bool goes_on = (random = mix(random)) % 16 != 0 && may_step_ahead(call) && steps.may_go_on();
            std::vector<Work> next = goes_on ? scheduler_.plan_ahead(steps.newest()) : std::vector<Work>();
            num_steps_ahead_ += !next.empty();
            num_launched_ += !next.empty();
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

    // A token for each sequence that gets one; -1 for the others.
    std::vector<int64_t> compute(const std::vector<Work>& work) {
        for (const Work& part : work) {
            for (int64_t i = part.start; i < part.start + part.count; ++i) {
                cache_.write(slot(*part.sequence, i), part.sequence->tokens[i]);
            }
        }
        std::vector<int64_t> tokens;
        for (const Work& part : work) {
            const Sequence& sequence = *part.sequence;
            for (int64_t i = 0; i < part.start + part.count; ++i) {
                const Memory::Slot& found = cache_.slots[slot(sequence, i)];
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
    Memory cache_;  // No lock: the stepping thread's own
    std::unique_ptr<DecodeLoop> loop_;
    int64_t num_sequences_ = 0, num_launched_ = 0, num_copies_ = 0, num_interrupted_ = 0, num_steps_ahead_ = 0,
            num_surplus_ = 0;
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
inline void check_row(const Sequence& row) {
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
inline void use(TestEngine& engine, int64_t thread, int64_t num_calls, bool keeps_prefixes) {
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

inline void use_by_many_threads(TestEngine& engine, bool keeps_prefixes) {
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

}  // namespace demiurgic::test
