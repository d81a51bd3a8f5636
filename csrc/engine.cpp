#include "engine.h"

#include "late_loop.h"
#include "neutral_mode.h"
#include "scorer.h"
#include "stopping.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>
#include <set>
#include <stdexcept>

namespace demiurgic {

namespace {

// The devices' own kernels read rows of weights as they lie; where a parameter is, say, the transpose of another tensor,
// plain ATen serves.
const Kernels& kernels_of(const Weights& weights, bool exact) {
    return weights.rows_are_contiguous() ? kernels_for(weights.device(), weights.dtype(), exact) : reference_alone();
}

}  // namespace

// The mark that a thread is stepping; whatever happens, it is taken back under the lock and the others are woken.
class Engine::Stepping {
public:
    Stepping(Engine& engine, std::unique_lock<std::mutex>& lock) : engine_(engine), lock_(lock) {
        engine_.stepping_ = true;
        engine_.stepping_thread_ = std::this_thread::get_id();
    }
    ~Stepping() {
        if (!lock_.owns_lock()) lock_.lock();
        engine_.stepping_ = false;
        std::vector<Ended> ended = engine_.remove_ended_calls();
        engine_.step_done_.notify_all();
        if (ended.empty()) return;
        lock_.unlock();
        ended.clear();
        lock_.lock();
    }

private:
    Engine& engine_;
    std::unique_lock<std::mutex>& lock_;
};

Engine::Engine(Weights weights, std::optional<int64_t> cache_bytes, int64_t max_step_tokens, bool keep_prefixes,
               bool exact)
    : weights_(std::move(weights)),
      exact_(exact),
      kernels_(kernels_of(weights_, exact)),
      cache_bytes_(cache_bytes),
      max_step_tokens_(max_step_tokens),
      home_(weights_.device()),
      cache_(weights_, kBlockSize, kernels_.cache_layout),
      decoder_(weights_, kernels_),
      sampler_(kernels_, weights_.device()),
      scheduler_(blocks_, max_step_tokens, keep_prefixes ? &kept_.emplace(blocks_) : nullptr),
      drafter_(max_step_tokens),
      loop_(make_loop()) {}

// A device that works on its own runs steps ahead: by a loop of its own, or by the entries of the table. DEMIURGIC_STEPS=ahead
// lets the CPU do so too, for tests; =simple none.
std::unique_ptr<DecodeLoop> Engine::make_loop() {
    const char* choice = std::getenv("DEMIURGIC_STEPS");
    const std::string steps = choice ? choice : "";
    if (!steps.empty() && steps != "ahead" && steps != "simple") {
        throw std::invalid_argument("DEMIURGIC_STEPS is '" + steps +
                                    "', but must be 'ahead' or 'simple', or not be set.");
    }
    if (steps == "simple" || (steps.empty() && weights_.device().is_cpu())) return nullptr;
    if (steps.empty() && kernels_.decode_loop) return kernels_.decode_loop(decoder_.loop_model(cache_, kBlockSize));
    return std::make_unique<LateLoop>(decoder_, cache_, kBlockSize, weights_.config().vocab_size, home_.stream());
}

bool Engine::serves(const Weights& weights, std::optional<int64_t> cache_bytes, int64_t max_step_tokens,
                    bool exact) const {
    return cache_bytes == cache_bytes_ && max_step_tokens == max_step_tokens_ && exact == exact_ &&
           weights_.same_layout(weights) && &kernels_ == &kernels_of(weights, exact);
}

namespace {

void check_max_running(int64_t max_running) {
    if (max_running < 1) throw std::invalid_argument("max_running must be 1 or more.");
}

void check_ids(const std::vector<int64_t>& ids, size_t row, int64_t vocab) {
    for (const int64_t id : ids) {
        if (id >= 0 && id < vocab) continue;
        throw std::out_of_range("input_ids holds the id " + std::to_string(id) + " in row " + std::to_string(row) +
                                ", but the vocabulary has the ids 0 to " + std::to_string(vocab - 1) + ".");
    }
}

void check_prompts(const Request& request, int64_t vocab) {
    if (request.prompts.empty()) throw std::invalid_argument("input_ids holds no prompt; give at least one.");
    const size_t num_rows = request.prompts.size() * static_cast<size_t>(request.config.num_return_sequences);
    if (request.seeds.size() != num_rows) throw std::invalid_argument("There must be one seed a row.");
    if (!request.max_new_tokens.empty() && request.max_new_tokens.size() != request.prompts.size()) {
        throw std::invalid_argument("There must be one max_new_tokens a prompt.");
    }
    check_max_running(request.max_running);
    for (size_t i = 0; i < request.prompts.size(); ++i) {
        if (request.prompts[i].empty()) {
            throw std::invalid_argument("The prompt of row " + std::to_string(i) +
                                        " is empty; give it at least one token, for instance BOS.");
        }
        check_ids(request.prompts[i], i, vocab);
    }
}

void check_option_ids(const GenerationConfig& config, int64_t vocab) {
    const auto check = [vocab](const char* option, int64_t id) {
        if (id < vocab) return;
        throw std::out_of_range(std::string(option) + " names the id " + std::to_string(id) +
                                ", but the vocabulary has the ids 0 to " + std::to_string(vocab - 1) + ".");
    };
    for (const auto& [id, bias] : config.logit_bias) check("logit_bias", id);
    for (const int64_t id : config.bad_token_ids) check("bad_token_ids", id);
    for (const int64_t id : config.stop_token_ids) check("stop_token_ids", id);
}

// Of one prompt.
GenerationConfig config_of(const Request& request, size_t prompt) {
    GenerationConfig config = request.config;
    if (!request.max_new_tokens.empty()) config.max_new_tokens = request.max_new_tokens[prompt];
    return config;
}

void check_text_options(const Request& request) {
    if (request.token_bytes || (request.config.stop.empty() && request.config.stop_at.empty())) return;
    throw std::invalid_argument(std::string(request.config.stop.empty() ? "stop_at" : "stop") +
                                " looks at the text of the tokens, so it needs the tokenizer: give tokenizer= too.");
}

std::shared_ptr<Call> make_call(const Request& request) {
    auto call = std::make_shared<Call>();
    call->max_running = request.max_running;
    call->want_logprobs = request.want_logprobs;
    call->always_drafts = request.always_drafts;
    call->hooks = request.hooks;
    call->keeps_if_settled = request.keeps_if_settled;
    call->interruptible = request.interruptible;
    if (request.max_seconds) {
        // As double, and bounded: who gives years may give any number.
        const std::chrono::duration<double> seconds(std::clamp(*request.max_seconds, 0.0, 1e9));
        call->deadline =
            std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(seconds);
    }
    const int64_t copies = request.config.num_return_sequences;
    auto config = std::make_shared<const GenerationConfig>(request.config);
    const auto rules = request.token_bytes ? std::make_shared<TextRules>(request.token_bytes, config) : nullptr;
    for (size_t i = 0; i < request.prompts.size(); ++i) {
        const std::vector<int64_t>& prompt = request.prompts[i];
        if (!request.max_new_tokens.empty()) {
            config = std::make_shared<const GenerationConfig>(config_of(request, i));
        }
        const auto shared = copies > 1 && config->use_cache ? std::make_shared<SharedPrompt>() : nullptr;
        const auto logprobs = config->prompt_logprobs ? std::make_shared<std::vector<float>>() : nullptr;
        for (int64_t copy = 0; copy < copies; ++copy) {
            const uint64_t seed = request.seeds[call->sequences.size()];
            auto sequence = std::make_unique<Sequence>(prompt, config, seed);
            sequence->call = call.get();
            sequence->row = static_cast<int64_t>(call->sequences.size());
            sequence->shared_prompt = shared;
            if (rules) sequence->text = std::make_unique<RowText>(rules, prompt);
            sequence->prompt_logprobs = logprobs;
            sequence->scored = logprobs && sequence->max_tokens <= sequence->prompt_length;
            if (shared) ++shared->num_members;
            call->sequences.push_back(std::move(sequence));
        }
    }
    return call;
}

std::shared_ptr<Call> make_scoring_call(const std::vector<std::vector<int64_t>>& rows, int64_t max_running) {
    auto call = std::make_shared<Call>();
    call->max_running = max_running;
    call->interruptible = false;
    GenerationConfig nothing;
    nothing.max_new_tokens = 0;
    nothing.eos_token_id = Ids{};
    const auto config = std::make_shared<const GenerationConfig>(nothing);
    for (const std::vector<int64_t>& row : rows) {
        auto sequence = std::make_unique<Sequence>(row, config, /*seed=*/0);
        sequence->scored = true;
        sequence->prompt_logprobs = std::make_shared<std::vector<float>>();
        sequence->call = call.get();
        call->sequences.push_back(std::move(sequence));
    }
    return call;
}

}  // namespace

void Engine::check(const Request& request) const {
    const int64_t vocab = weights_.config().vocab_size;
    request.config.validate();
    check_prompts(request, vocab);
    check_option_ids(request.config, vocab);
    check_drafts(request);
    check_text_options(request);
    const std::lock_guard lock(mutex_);
    const int64_t most = most_blocks();
    for (size_t i = 0; i < request.prompts.size(); ++i) {
        check_room(static_cast<int64_t>(request.prompts[i].size()), config_of(request, i), most);
    }
}

void Engine::check_drafts(const Request& request) const {
    const bool looks_up = !request.config.speculate.empty(), draws = request.draft_model != nullptr;
    if (!looks_up && !draws) return;
    const std::string name = looks_up ? "speculate='" + request.config.speculate + "'" : "draft_model";
    if (looks_up && draws) {
        throw std::invalid_argument(name + " and draft_model both bring drafts of the next tokens; give one of them.");
    }
    if (!exact_ || !kernels_.exact_rows) {
        throw std::invalid_argument(
            name + " promises the result that there is without it, so it needs kernels whose bits " +
            "do not depend on how many tokens are computed at once. " + why_rows_are_not_exact() + " Leave it out.");
    }
    if (!draws) return;
    const int64_t vocab = weights_.config().vocab_size, drafts_vocab = request.draft_model->config().vocab_size;
    if (vocab != drafts_vocab) {
        throw std::invalid_argument("draft_model has a vocabulary of " + std::to_string(drafts_vocab) +
                                    " tokens and the model one of " + std::to_string(vocab) +
                                    "; it must be the same one, with the same ids.");
    }
    if (weights_.device() != request.draft_model->device()) {
        throw std::invalid_argument("draft_model is on " + request.draft_model->device().str() + " and the model on " +
                                    weights_.device().str() + "; move it there.");
    }
}

std::string Engine::why_rows_are_not_exact() const {
    if (!exact_) return "exact=False gives them up.";
    if (!weights_.device().is_cpu()) return "There are none for " + weights_.device().str() + " yet.";
    if (!weights_.rows_are_contiguous()) {
        return "There are none for parameters whose rows do not lie in one piece in memory, as those of a transposed one.";
    }
    return "DEMIURGIC_KERNELS asks for the reference kernels, which are not.";
}

std::shared_ptr<Call> Engine::add(const Request& request, const Poll& poll) {
    check(request);
    std::shared_ptr<Call> call = make_call(request);
    admit(call, poll, request.draft_model);
    return call;
}

std::vector<Score> Engine::score(const std::vector<std::vector<int64_t>>& rows, int64_t max_running, const Poll& poll) {
    check_max_running(max_running);
    for (size_t i = 0; i < rows.size(); ++i) check_ids(rows[i], i, weights_.config().vocab_size);
    {
        const std::lock_guard lock(mutex_);
        const int64_t most = most_blocks();
        for (const std::vector<int64_t>& row : rows) check_room_to_score(static_cast<int64_t>(row.size()), most);
    }
    const std::shared_ptr<Call> call = make_scoring_call(rows, max_running);
    admit(call, poll);
    try {
        while (advance(*call, poll)) {
        }
    } catch (...) {
        cancel(*call);
        throw;
    }
    std::vector<Score> scores;  // the call is finished: no thread changes its sequences any more
    for (const auto& sequence : call->sequences) scores.push_back({sequence->all_prompt_logprobs(), sequence->error});
    return scores;
}

void Engine::admit(const std::shared_ptr<Call>& call, const Poll& poll,
                   const std::shared_ptr<const Weights>& draft_model) {
    const HomeStream::Visit visit(home_);
    std::unique_lock lock(mutex_);
    wait_for_step(lock, poll);
    if (draft_model) call->draft_model = draft_model_of(draft_model);
    grow_cache(*call);
    for (const auto& sequence : call->sequences) {
        ++call->num_unfinished;
        sequence->id = num_sequences_++;
        scheduler_.add(*sequence);
        const FinishReason reason = reason_to_stop(*sequence);  // nothing to generate or to score
        if (reason != FinishReason::none) finish(*sequence, reason);
    }
    if (!call->finished()) calls_.push_back(call);
    step_done_.notify_all();
}

// Waits for the end of a step, or a little; `poll` is asked without the lock.
void Engine::wait(std::unique_lock<std::mutex>& lock, const Poll& poll) {
    step_done_.wait_for(lock, std::chrono::milliseconds(20));
    lock.unlock();
    try {
        poll();
    } catch (...) {
        lock.lock();
        throw;
    }
    lock.lock();
}

// A hook that waited for the end of the step that it is part of would wait for ever.
void Engine::check_not_in_hook() const {
    if (!stepping_ || stepping_thread_ != std::this_thread::get_id()) return;
    throw std::runtime_error(
        "A logits processor or a stopping criterion used the engine of the model that is just generating with it; "
        "generate with another model in it, or call the model's forward.");
}

void Engine::wait_for_step(std::unique_lock<std::mutex>& lock, const Poll& poll) {
    check_not_in_hook();
    ++num_adding_;
    try {
        while (stepping_) wait(lock, poll);
    } catch (...) {
        --num_adding_;
        throw;
    }
    --num_adding_;
}

bool Engine::advance(Call& call, const Poll& poll) {
    const HomeStream::Visit visit(home_);
    std::unique_lock lock(mutex_);
    check_not_in_hook();
    const int64_t steps_before = call.num_steps;
    const auto look = std::chrono::steady_clock::now() + kMostTimeBetweenLooks;
    const auto goes_on = [&] {
        return call.num_steps == steps_before || (!call.interruptible && std::chrono::steady_clock::now() < look);
    };
    while (!call.finished() && goes_on()) {
        if (stepping_ || num_adding_ > 0) {
            wait(lock, poll);
        } else {
            step(lock, poll, call);
        }
    }
    if (call.failure) std::rethrow_exception(std::exchange(call.failure, nullptr));
    return !call.finished();
}

// A step, or several where the device can run ahead of the host. `call`: of whoever needs a token.
void Engine::step(std::unique_lock<std::mutex>& lock, const Poll& poll, const Call& call) {
    const Stepping stepping(*this, lock);
    std::vector<Work> work = scheduler_.plan();
    const bool ahead = loop_ && StepsAhead::takes(work, *loop_);
    if (ahead) {
        scheduler_.make_room_ahead(work);
    } else {
        drafter_.plan(work, scheduler_);
    }
    lock.unlock();
    const NeutralMode mode(home_.stream());
    cache_.copy(scheduler_.pending_copies());  // before anything that may throw: a copy must not be made later
    scheduler_.pending_copies().clear();
    if (ahead) {
        step_ahead(std::move(work), lock, poll, call);
    } else {
        step_simply(work, lock, poll);
    }
}

void Engine::step_simply(std::vector<Work>& work, std::unique_lock<std::mutex>& lock, const Poll& poll) {
    Stopwatch watch, whole_step;
    drafter_.draw(work, poll);
    const Batch batch(work, kBlockSize, weights_.device());
    const at::Tensor logits = work.empty() ? at::Tensor() : decoder_.decode(batch, cache_, poll);
    const std::vector<float> scored = scores(batch, logits);
    Rounds rounds(batch);
    Choices choices = sample(rounds, logits);
    lock.lock();
    commit(work);
    accept_scores(work, batch, scored);
    accept(rounds, choices);
    charge(work, watch.seconds());
    // Whenever the lock is free, what was accepted so far stands as if the step had ended: it may be left at any round.
    while (rounds.next()) {
        lock.unlock();
        choices = sample(rounds, logits);
        lock.lock();
        for (Sequence* sequence : rounds.sequences()) scheduler_.draft_accepted(*sequence);
        accept(rounds, choices);
        charge(work, watch.seconds());
    }
    drafter_.learn(work, whole_step.seconds());
}

// While the device computes a step, the host accepts what the one before has given, and launches the next. Whenever the lock
// is free, what was accepted stands as if its step had been the last; what is in flight can be dropped without a trace.
void Engine::step_ahead(std::vector<Work> work, std::unique_lock<std::mutex>& lock, const Poll& poll,
                        const Call& call) {
    Stopwatch watch;
    const auto end = std::chrono::steady_clock::now() + kMostTimeBetweenLooks;
    StepsAhead steps(*loop_, kBlockSize, weights_.config().vocab_size);
    steps.launch(std::move(work));
    while (steps.any_in_flight()) {
        lock.lock();
        const bool goes_on = std::chrono::steady_clock::now() < end && may_step_ahead(call) && steps.may_go_on();
        std::vector<Work> next = goes_on ? scheduler_.plan_ahead(steps.newest()) : std::vector<Work>();
        num_steps_ahead_ += !next.empty();
        lock.unlock();
        if (!next.empty()) steps.launch(std::move(next));
        const StepsAhead::Results results = steps.read(poll);
        lock.lock();
        if (!results.work.empty()) accept(results);
        charge(results.work, watch.seconds());
        step_done_.notify_all();
        lock.unlock();
    }
    lock.lock();
}

// Nobody waits for the end of a step, and what is to come cannot depend on what the user does between two of them.
bool Engine::may_step_ahead(const Call& call) const {
    const auto cancelled = [](const std::shared_ptr<Call>& other) { return other->cancelled; };
    return !call.interruptible && !call.finished() && num_adding_ == 0 &&
           std::none_of(calls_.begin(), calls_.end(), cancelled);
}

void Engine::accept(const StepsAhead::Results& results) {
    commit(results.work);
    for (size_t i = 0; i < results.work.size(); ++i) {
        Sequence& sequence = *results.work[i].sequence;
        if (!sequence.call->cancelled) accept(sequence, results.samples[i], /*ended=*/false);
    }
    end_late_calls();
}

Choices Engine::sample(const Rounds& rounds, const at::Tensor& logits) {
    if (rounds.sequences().empty()) return {};
    return choose(sampler_, rounds.logits(logits), rounds.sequences());
}

// Of Batch::scored_tokens.
std::vector<float> Engine::scores(const Batch& batch, const at::Tensor& logits) const {
    const int64_t count = batch.scored_tokens.size(0);
    if (count == 0) return {};
    return log_probabilities(logits.narrow(0, logits.size(0) - count, count), batch.scored_tokens, kernels_);
}

void Engine::commit(const std::vector<Work>& work) {
    ++num_steps_;
    std::set<Call*> calls;
    for (const Work& part : work) {
        num_computed_tokens_ += part.count + static_cast<int64_t>(part.drafts.size());
        part.sequence->num_drafted += static_cast<int64_t>(part.drafts.size());
        calls.insert(part.sequence->call);
        scheduler_.computed(part);
    }
    for (Call* call : calls) ++call->num_steps;
}

// `seconds` of a step, to the calls that have `work` in it.
void Engine::charge(const std::vector<Work>& work, double seconds) {
    std::map<Call*, bool> calls;  // and whether the step computed prompt tokens of theirs
    for (const Work& part : work) calls[part.sequence->call] |= part.start < part.sequence->prompt_length;
    for (const auto& [call, in_prompt] : calls) (in_prompt ? call->prefill_seconds : call->decode_seconds) += seconds;
}

// `scores` in the order of Batch::scored_tokens.
void Engine::accept_scores(const std::vector<Work>& work, const Batch& batch, const std::vector<float>& scores) {
    auto next = scores.begin();
    for (const auto& [sequence, span] : batch.scored) {
        const auto begin = next, end = next += span.count;
        std::vector<float>& logprobs = *sequence->prompt_logprobs;
        if (std::any_of(begin, end, [](float logprob) { return std::isnan(logprob); })) {
            sequence->error = explain(kNotFinite, /*hooked=*/false);
            finish(*sequence, FinishReason::error);
            continue;  // how many were scored before depends on the chunks; Sequence::all_prompt_logprobs gives none
        }
        // Without a cache to share, copies may have been given the same positions in one step.
        logprobs.resize(std::max(logprobs.size(), static_cast<size_t>(span.first + span.count)));
        std::copy(begin, end, logprobs.begin() + span.first);
    }
    for (const Work& part : work) {
        if (!part.sequence->scored || part.sequence->finished()) continue;
        const FinishReason reason = reason_to_stop(*part.sequence);
        if (reason != FinishReason::none) finish(*part.sequence, reason);
    }
}

void Engine::accept(const Rounds& rounds, const Choices& choices) {
    for (size_t i = 0; i < choices.samples.size(); ++i) {
        Sequence& sequence = *rounds.sequences()[i];
        // Finished: its prompt could not be scored. Cancelled: whoever did that has read what there is.
        if (sequence.finished() || sequence.call->cancelled || choices.samples[i].token == kHookFailed) continue;
        accept(sequence, choices.samples[i], choices.ended[i]);
    }
    for (const auto& [call, failure] : choices.failures) {
        call->failure = failure;
        end(*call, FinishReason::cancelled);
    }
    end_late_calls();
}

void Engine::end_late_calls() {
    for (const auto& call : calls_) {
        if (call->deadline && std::chrono::steady_clock::now() > *call->deadline) end(*call, FinishReason::length);
    }
}

void Engine::end(Call& call, FinishReason reason) {
    for (const auto& sequence : call.sequences) {
        if (sequence->finished()) continue;
        if (reason == FinishReason::cancelled) {
            finish(*sequence, reason);
        } else {
            finish_trimmed(*sequence, reason_to_end(*sequence, reason));
        }
    }
}

void Engine::finish_trimmed(Sequence& sequence, FinishReason reason) {
    trim(sequence, reason);
    finish(sequence, reason);
}

// `ended`: by a stopping criterion of the user's.
void Engine::accept(Sequence& sequence, const Sample& sample, bool ended) {
    if (sample.token < 0) {
        sequence.error = explain(sample.token, sequence.call->hooks != nullptr);
        finish(sequence, FinishReason::error);
        return;
    }
    sequence.append(sample.token);
    if (sequence.call->want_logprobs) {
        sequence.logprobs.push_back(sample.logprob);
        sequence.processed_logprobs.push_back(sample.processed_logprob);
    }
    if (sample.raw) sequence.raw_reports.append(*sample.raw);
    if (sample.processed) sequence.processed_reports.append(*sample.processed);
    FinishReason reason = reason_to_stop(sequence);
    if (reason == FinishReason::none && ended) reason = reason_to_end(sequence, FinishReason::stop);
    if (reason != FinishReason::none) finish_trimmed(sequence, reason);
}

std::string Engine::explain(int64_t no_token, bool hooked) const {
    if (no_token == kNothingAllowed) {
        return std::string("The options ") + (hooked ? "and logits processors " : "") +
               "forbid every token, so none could be chosen.";
    }
    if (no_token == kHookNotFinite) {
        return "The logits are NaN or +inf after the logits processors, though the model's are finite.";
    }
    if (no_token == kOverflow) {
        return "logit_bias, the penalties or temperature took the largest logit out of the range of float32.";
    }
    const std::string parameter = weights_.first_non_finite();
    if (parameter.empty())
        return "The model gave logits that are NaN or infinite, though all its parameters are finite.";
    return "The model gave logits that are NaN or infinite: the parameter " + parameter + " holds such values.";
}

void Engine::finish(Sequence& sequence, FinishReason reason) {
    sequence.finish_reason = reason;
    sequence.repetition.reset();  // their memory
    sequence.lookup.reset();
    scheduler_.remove(sequence);
    if (sequence.call->draft_model) sequence.call->draft_model->forget(sequence);
    --sequence.call->num_unfinished;
}

// Whoever gets them lets them go without the lock: with a call or its hooks, objects of the user's may go, and what they do
// then is theirs. A finished call needs neither its hooks nor the cache of its draft model.
std::vector<Engine::Ended> Engine::remove_ended_calls() {
    std::vector<Ended> ended;
    for (const auto& call : calls_) {
        if (call->cancelled) end(*call, FinishReason::cancelled);
        if (call->finished()) ended.push_back({call, std::move(call->hooks), std::move(call->draft_model)});
    }
    std::erase_if(calls_, [](const auto& call) { return call->finished(); });
    return ended;
}

void Engine::cancel(Call& call) {
    const HomeStream::Visit visit(home_);
    std::vector<Ended> ended;  // goes after the lock
    const std::lock_guard lock(mutex_);
    call.cancelled = true;
    if (!stepping_) {  // else the stepping thread does it at the end of its step
        ended = remove_ended_calls();
        // An exception's traceback, which a notebook keeps, may hold the call, and so the engine, long after its end.
        if (calls_.empty() && !kept_) give_cache_back();
    }
    step_done_.notify_all();
}

void Engine::read(const std::function<void()>& reader) const {
    const std::lock_guard lock(mutex_);
    reader();
}

EngineCounters Engine::counters() const {
    const std::lock_guard lock(mutex_);
    int64_t cache_bytes = cache_.num_blocks() * cache_.block_bytes();
    for (const DraftModel* model : draft_models()) cache_bytes += model->num_blocks() * model->block_bytes();
    EngineCounters counters{num_steps_,         num_computed_tokens_, num_steps_ahead_, scheduler_.num_preemptions(),
                            blocks_.num_used(), cache_bytes};
    if (kept_) {
        counters.num_kept_tokens = kept_->num_tokens();
        counters.kept_bytes = kept_->num_blocks() * cache_.block_bytes();
        counters.num_hits = scheduler_.num_hits();
        counters.num_reused_tokens = scheduler_.num_reused_tokens();
        counters.num_evicted_blocks = kept_->num_evicted();
    }
    return counters;
}

}  // namespace demiurgic
