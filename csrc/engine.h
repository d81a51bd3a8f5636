#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "decoder.h"
#include "drafter.h"
#include "home_stream.h"
#include "hooks.h"
#include "kv_cache.h"
#include "rounds.h"
#include "sampler.h"
#include "scheduler.h"
#include "steps_ahead.h"
#include "stopwatch.h"
#include "weights.h"

namespace demiurgic {

// What a call asks for: every prompt `num_return_sequences` times, prompt-major.
struct Request {
    std::vector<std::vector<int64_t>> prompts;  // each of one token or more, ids inside the vocabulary
    GenerationConfig config;                    // eos_token_id is resolved: not nullopt
    std::vector<uint64_t> seeds;                // one a row of the result
    int64_t max_running = 256;
    bool want_logprobs = false;
    std::shared_ptr<const TokenBytes> token_bytes;    // null: no texts are made
    std::vector<int64_t> max_new_tokens;              // one a prompt, in place of the config's; empty: the config's
    std::shared_ptr<const Hooks> hooks = nullptr;     // null: none
    std::optional<double> max_seconds = {};           // rows that are unfinished after so long end, by their length
    std::shared_ptr<const Weights> draft_model = {};  // of a smaller model that guesses tokens
    bool keeps_if_settled = false;                    // what it leaves to a session waits for Engine::settle
    bool always_drafts = false;                       // as many as there can be, whatever they cost: for tests
    bool interruptible = true;  // between two steps by code of the user's, which may change the weights
};

// A row of Engine::score.
struct Score {
    std::vector<float> logprobs;  // of all tokens but the first; empty where there is an error
    std::string error;            // "" where all is well
};

struct EngineCounters {
    int64_t num_steps = 0;
    int64_t num_computed_tokens = 0;  // that went through the decoder
    int64_t num_steps_ahead = 0;      // launched before the tokens of the step before were known
    int64_t num_preemptions = 0;
    int64_t num_used_blocks = 0;
    int64_t cache_bytes = 0;
    int64_t num_kept_tokens = 0;  // this and what follows: of an engine that keeps prefixes
    int64_t kept_bytes = 0;
    int64_t num_hits = 0;  // sequences that started from a kept prefix
    int64_t num_reused_tokens = 0;
    int64_t num_evicted_blocks = 0;
};

// Generates for all calls that are under way on one model. It has no thread of its own: whoever needs a token and finds
// nobody stepping runs the step for everybody; the others wait. All methods may be called from any thread; none knows of
// Python, but hooks of the user's are called.
class Engine {
public:
    static constexpr int64_t kBlockSize = 16;
    // After which who runs steps of a call that nothing may come between has a look round: to show how far it has got.
    static constexpr std::chrono::milliseconds kMostTimeBetweenLooks{100};

    // `cache_bytes`: most memory of the key/value cache; nullopt: what is free on the device. `keep_prefixes`: what
    // sequences have computed stays in the cache for later ones, as long as there is room. Not `exact`: the bits of a row
    // may depend on how many tokens are computed with it, where that is faster.
    Engine(Weights weights, std::optional<int64_t> cache_bytes, int64_t max_step_tokens, bool keep_prefixes = false,
           bool exact = true);

    // Whether calls on these live tensors, with these limits, can share this engine.
    bool serves(const Weights& weights, std::optional<int64_t> cache_bytes, int64_t max_step_tokens,
                bool exact = true) const;

    // Throws std::invalid_argument or std::out_of_range for a bad request, or where drafts are asked for and the kernels do
    // not keep the bits of a row whatever is computed with it; and NoRoom, with the numbers, where a sequence
    // can never fit.
    void check(const Request& request) const;

    // Throws as check does, or what `poll` throws while a step of others is waited for; the engine is then as before.
    std::shared_ptr<Call> add(const Request& request, const Poll& poll);

    // Natural logs of the probabilities that the model gives each token of `rows` after those before it: for n tokens
    // n - 1 numbers, none for an empty row. They are the bits of the raw log-probabilities that a Call collects for tokens
    // it generates, where the kernels keep the bits of a logit between batches. Chunks of a row go through the steps of
    // the one loop, together with the calls of other threads; a step holds the logits of at most
    // Scheduler::kMaxScoredTokens tokens. `max_running`: most rows at a time. Returns when all is done. Throws as add
    // does, and what `poll` throws, which is asked as in advance; nothing of the rows is left behind then.
    std::vector<Score> score(const std::vector<std::vector<int64_t>>& rows, int64_t max_running, const Poll& poll);

    // Runs steps, or waits for another thread's, until `call` has a new token or end, or, where it is not interruptible,
    // for kMostTimeBetweenLooks. False where it is finished.
    // `poll` is asked between layers and while waiting; what it throws ends the step, without a trace, and leaves here.
    // What a hook of the call threw, on whatever thread, leaves here too; the call has ended then.
    bool advance(Call& call, const Poll& poll);

    // Ends the unfinished sequences of the call and frees their blocks; with the last call the cache goes, unless prefixes
    // are kept in it.
    void cancel(Call& call);

    // Runs `reader` while no thread changes any call.
    void read(const std::function<void()>& reader) const;

    EngineCounters counters() const;

    // ---- kept prefixes (engine_prefixes.cpp); of an engine made with keep_prefixes only

    // The present values of all weights, as one number.
    uint64_t fingerprint() const;

    // Calls that are added from now on use prefixes of weights with this fingerprint only: those of others are dropped,
    // and what calls under way compute is not kept. Whether anything was kept that is dropped now.
    bool keep_prefixes_of(uint64_t fingerprint);

    // For a call with `keeps_if_settled` that has ended or is cancelled: what its rows have computed is kept if the weights
    // are still those that prefixes are kept of. To be called by who may have let the user's code run between its steps.
    void settle(Call& call);

    // The same, and nothing is kept.
    void forget(Call& call);

    // Drops all prefixes and, if no call is under way, gives the memory of the cache back. What calls under way compute is
    // not kept.
    void clear_prefixes(const Poll& poll);

    // The keys and values of a kept prefix, of weights with this fingerprint. Throws NoRoom where `tokens` are not kept as
    // a whole, std::runtime_error where it is not that of keep_prefixes_of any more.
    KVCache::Content read_prefix(const std::vector<int64_t>& tokens, uint64_t fingerprint, const Poll& poll);

    // Keeps `tokens` with what read_prefix gave. Throws as it does, std::out_of_range or std::invalid_argument for what is
    // not of this model's vocabulary, shapes or dtype, NoRoom where the cache is too small.
    void write_prefix(const std::vector<int64_t>& tokens, const KVCache::Content& content, uint64_t fingerprint,
                      const Poll& poll);

    // What the bits of keys and values depend on beside weights and tokens: device and kernels.
    std::string kernels() const;

private:
    class Stepping;

    void wait(std::unique_lock<std::mutex>& lock, const Poll& poll);
    void wait_for_step(std::unique_lock<std::mutex>& lock, const Poll& poll);

    void step(std::unique_lock<std::mutex>& lock, const Poll& poll, const Call& call);
    void step_simply(std::vector<Work>& work, std::unique_lock<std::mutex>& lock, const Poll& poll);
    void step_ahead(std::vector<Work> work, std::unique_lock<std::mutex>& lock, const Poll& poll, const Call& call);
    bool may_step_ahead(const Call& call) const;
    std::unique_ptr<DecodeLoop> make_loop();
    void admit(const std::shared_ptr<Call>& call, const Poll& poll,
               const std::shared_ptr<const Weights>& draft_model = {});
    std::shared_ptr<DraftModel> draft_model_of(const std::shared_ptr<const Weights>& weights) const;
    std::vector<DraftModel*> draft_models(const Call* added = nullptr) const;
    Choices sample(const Rounds& rounds, const at::Tensor& logits);
    std::vector<float> scores(const Batch& batch, const at::Tensor& logits) const;
    void commit(const std::vector<Work>& work);
    void charge(const std::vector<Work>& work, double seconds);
    void accept(const Rounds& rounds, const Choices& choices);
    void accept(const StepsAhead::Results& results);
    void accept(Sequence& sequence, const Sample& sample, bool ended);
    void end(Call& call, FinishReason reason);
    void end_late_calls();
    void finish_trimmed(Sequence& sequence, FinishReason reason);
    void check_not_in_hook() const;
    void accept_scores(const std::vector<Work>& work, const Batch& batch, const std::vector<float>& scores);
    void finish(Sequence& sequence, FinishReason reason);
    // What is over, with what it no longer needs.
    struct Ended {
        std::shared_ptr<Call> call;
        std::shared_ptr<const Hooks> hooks;
        std::shared_ptr<DraftModel> draft_model;
    };
    [[nodiscard]] std::vector<Ended> remove_ended_calls();
    void grow_cache(const Call& added);
    void share_cache_left(const Call* added);
    int64_t budget(int64_t held) const;
    void check_drafts(const Request& request) const;
    std::string why_rows_are_not_exact() const;
    void grow_cache_to(double blocks_wanted_by_calls, const Call* added = nullptr);
    double blocks_to_hold(double wanted, double most) const;
    void give_cache_back();
    void grow_blocks(int64_t capacity, int64_t least);
    double blocks_wanted_now() const;
    int64_t least_blocks(const Call* added) const;
    void check_fingerprint(uint64_t fingerprint) const;
    void check_content(const std::vector<int64_t>& tokens, const KVCache::Content& content) const;
    void check_room(int64_t prompt_length, const GenerationConfig& config, int64_t most_blocks) const;
    void check_room_to_score(int64_t length, int64_t most_blocks) const;
    std::string needs(int64_t num_blocks, int64_t most_blocks) const;
    int64_t most_blocks() const;
    std::string explain(int64_t no_token, bool hooked) const;

    const Weights weights_;
    const bool exact_;
    const Kernels& kernels_;
    const std::optional<int64_t> cache_bytes_;
    const int64_t max_step_tokens_;
    const HomeStream home_;

    // Guards all below. While stepping_, the stepping thread computes without it: nobody else then touches cache_ or the
    // content of a sequence.
    mutable std::mutex mutex_;
    std::condition_variable step_done_;
    bool stepping_ = false;
    std::thread::id stepping_thread_;  // while stepping_
    int64_t num_adding_ = 0;           // threads in add; no new step begins before them
    KVBlocks blocks_{kBlockSize};
    std::optional<PrefixIndex> kept_;
    std::optional<uint64_t> fingerprint_;  // of the weights that kept_ was computed with
    KVCache cache_;
    Decoder decoder_;
    Sampler sampler_;
    Scheduler scheduler_;
    Drafter drafter_;
    const std::unique_ptr<DecodeLoop> loop_;    // null: the device has none
    std::vector<std::shared_ptr<Call>> calls_;  // unfinished
    int64_t num_sequences_ = 0;                 // so far
    int64_t num_steps_ = 0;
    int64_t num_steps_ahead_ = 0;
    int64_t num_computed_tokens_ = 0;
};

}  // namespace demiurgic
