// The scheduler, as the engine uses it, by many threads: they add, step for everybody, wait, cancel and interrupt. The
// model is a cache of plain memory: a step writes what each token is, and reads back the whole context of each sequence.

#include "scheduler.h"

#include <algorithm>
#include <condition_variable>
#include <map>
#include <mutex>
#include <thread>

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
    TestEngine(int64_t num_blocks, int64_t max_step_tokens) : scheduler_(blocks_, max_step_tokens) {
        blocks_.grow(num_blocks);
        cache_.resize(num_blocks * kBlockSize, -1);
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
        lock.unlock();
        for (const BlockCopy& copy : scheduler_.pending_copies()) {
            std::copy_n(cache_.begin() + copy.from * kBlockSize, kBlockSize, cache_.begin() + copy.to * kBlockSize);
            ++num_copies_;
        }
        scheduler_.pending_copies().clear();
        check_plan(work);
        const std::vector<int64_t> tokens = compute(work);
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

    // A token for each sequence that gets one; -1 for the others.
    std::vector<int64_t> compute(const std::vector<Work>& work) {
        for (const Work& part : work) {
            for (int64_t i = part.start; i < part.start + part.count; ++i) {
                cache_[slot(*part.sequence, i)] = part.sequence->tokens[i];
            }
        }
        std::vector<int64_t> tokens;
        for (const Work& part : work) {
            const Sequence& sequence = *part.sequence;
            for (int64_t i = 0; i < part.start + part.count; ++i) {
                check(cache_[slot(sequence, i)] == sequence.tokens[i],
                      "the cache of a sequence does not hold its token " + std::to_string(i));
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

    std::mutex mutex_;
    std::condition_variable step_done_;
    bool stepping_ = false;
    int64_t num_adding_ = 0;
    KVBlocks blocks_{kBlockSize};
    Scheduler scheduler_;
    std::vector<std::shared_ptr<Call>> calls_;
    std::vector<int64_t> cache_;  // by slot: the token that stands there. No lock: the stepping thread's own
    int64_t num_copies_ = 0, num_interrupted_ = 0;
};

// One call, drawn from a number: prompts, copies of each, options.
struct Plan {
    explicit Plan(uint64_t number) : random(mix(number)) {
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
            for (int64_t j = 0; j < length; ++j) prompt.push_back(100 + draw(900));
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
void use(TestEngine& engine, int64_t thread, int64_t num_calls) {
    for (int64_t i = 0; i < num_calls; ++i) {
        Plan plan(static_cast<uint64_t>(thread * 1000 + i));
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

void many_threads_get_what_one_would() {
    constexpr int kThreads = 4;
    constexpr int64_t kCalls = 60;
    TestEngine engine(/*num_blocks=*/24, /*max_step_tokens=*/40);
    std::vector<std::string> problems(kThreads);
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
        threads.emplace_back([&engine, &problems, i] {
            try {
                use(engine, i, kCalls);
            } catch (const std::exception& error) {
                problems[i] = error.what();
                std::fprintf(stderr, "%s\n", error.what());
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& problem : problems) check(problem.empty(), problem);
    check(engine.blocks().num_used() == 0, std::to_string(engine.blocks().num_used()) + " blocks are held by nobody");
    check(engine.num_preemptions() > 0 && engine.num_copies() > 0 && engine.num_interrupted() > 0,
          "no sequence was preempted, forked or interrupted: the test shows little");
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
            {"a call is cancelled by another thread", a_call_is_cancelled_by_another_thread},
            {"what does not fit is refused", what_does_not_fit_is_refused},
        },
        argc > 1 ? argv[1] : nullptr);
}
