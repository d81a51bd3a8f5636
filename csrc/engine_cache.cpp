// How much memory an engine's cache takes: what there is, what the calls want, how it grows. The rest of Engine is in
// engine.cpp.
#include <c10/util/Exception.h>

#include <algorithm>
#include <map>
#include <sstream>

#include "cache_budget.h"
#include "engine.h"
#include "late_loop.h"
#include "neutral_mode.h"

namespace demiurgic {

namespace {

std::string megabytes(double bytes) {
    std::ostringstream out;
    out.precision(bytes < 1e8 ? 3 : 6);
    out << bytes / 1e6 << " MB";
    return out.str();
}

bool is_out_of_memory(const c10::Error& error) {
    return dynamic_cast<const c10::OutOfMemoryError*>(&error) || says_out_of_memory(error.what_without_backtrace());
}

}  // namespace

// Bytes of a cache that takes `held` now, where cache_bytes says nothing.
int64_t Engine::budget(int64_t held) const {
    return held + cache_budget(free_bytes(weights_.device()), !weights_.device().is_cpu());
}

int64_t Engine::most_blocks() const {
    const int64_t bytes = cache_bytes_ ? *cache_bytes_ : budget(cache_.num_blocks() * cache_.block_bytes());
    return bytes / cache_.block_bytes();
}

void Engine::check_room(int64_t prompt_length, const GenerationConfig& config, int64_t most_blocks) const {
    const int64_t max_tokens = max_tokens_of(prompt_length, config);
    if (max_tokens <= prompt_length) {
        if (config.prompt_logprobs) check_room_to_score(prompt_length, most_blocks);
        return;
    }
    const int64_t needed = blocks_.blocks_for(max_tokens - 1);  // the last token is never looked at
    if (needed <= most_blocks) return;
    throw NoRoom("A row of " + std::to_string(prompt_length) + " prompt tokens that may grow to " +
                 std::to_string(max_tokens) + needs(needed, most_blocks) + "; lower max_new_tokens" +
                 (cache_bytes_ ? " or raise cache_bytes." : " or free memory."));
}

void Engine::check_room_to_score(int64_t length, int64_t most_blocks) const {
    const int64_t needed = blocks_.blocks_for(length - 1);  // the last token is never looked at
    if (needed <= most_blocks) return;
    throw NoRoom("A row of " + std::to_string(length) + " tokens" + needs(needed, most_blocks) +
                 "; score it in shorter pieces" + (cache_bytes_ ? " or raise cache_bytes." : " or free memory."));
}

std::string Engine::needs(int64_t num_blocks, int64_t most_blocks) const {
    const double block_bytes = static_cast<double>(cache_.block_bytes());
    return " needs " + megabytes(static_cast<double>(num_blocks) * block_bytes) + " of key/value cache, but " +
           (cache_bytes_ ? "cache_bytes allows " : "the device has room for ") +
           megabytes(static_cast<double>(most_blocks) * block_bytes);
}

namespace {

// As double: a limit of 2^62 tokens is allowed, so the sum may not fit an integer.
double sum_of_largest(std::vector<int64_t> values, size_t count) {
    std::sort(values.rbegin(), values.rend());
    double sum = 0;
    for (size_t i = 0; i < std::min(values.size(), count); ++i) sum += static_cast<double>(values[i]);
    return sum;
}

// Blocks with which no sequence of the call waits for one or is preempted, and every prompt is computed once.
double blocks_wanted(const Call& call, const KVBlocks& blocks) {
    std::vector<int64_t> needs;
    int64_t num_scored = 0;
    std::map<const SharedPrompt*, int64_t> prompts;  // stay while copies wait, also after a copy that ran has ended
    for (const auto& sequence : call.sequences) {
        if (sequence->finished()) continue;
        num_scored += sequence->scored;
        needs.push_back(blocks.blocks_for(std::max(sequence->max_tokens, sequence->prompt_length) - 1));
        if (sequence->shared_prompt)
            prompts[sequence->shared_prompt.get()] = blocks.blocks_for(sequence->prompt_length);
    }
    // Scored rows run one after the other, as far as they fit a step: few rows of many tokens, or many of few.
    if (num_scored > 0 && num_scored == static_cast<int64_t>(needs.size())) {
        return std::min(sum_of_largest(needs, static_cast<size_t>(call.max_running)),
                        sum_of_largest(needs, 2) + static_cast<double>(Scheduler::kMaxScoredTokens));
    }
    const size_t most = static_cast<size_t>(call.max_running);
    double wanted = sum_of_largest(needs, most);
    if (needs.size() > most) {
        std::vector<int64_t> held;
        for (const auto& [prompt, num_blocks] : prompts) held.push_back(num_blocks);
        wanted += sum_of_largest(held, most);
    }
    return wanted;
}

}  // namespace

double Engine::blocks_wanted_now() const {
    double wanted = 0;
    for (const auto& call : calls_) wanted += blocks_wanted(*call, blocks_);
    return wanted;
}

// With fewer, the longest row that is unfinished could never run.
int64_t Engine::least_blocks(const Call* added) const {
    int64_t least = 0;
    const auto see = [&](const Call& call) {
        for (const auto& sequence : call.sequences) {
            if (sequence->finished()) continue;
            const int64_t longest = std::max(sequence->max_tokens, sequence->prompt_length);
            least = std::max(least, blocks_.blocks_for(longest - 1));
        }
    };
    for (const auto& call : calls_) see(*call);
    if (added) see(*added);
    return least;
}

// Blocks for what the calls under way want, and for what is kept; half as many again, at least, of a cache that grows. Without
// cache_bytes, the cache grows for the sake of kept prefixes to a quarter of what the device has room for.
double Engine::blocks_to_hold(double wanted, double most) const {
    const double limit = cache_bytes_ || !kept_ ? most : std::max(wanted, most / 4);
    const double needed = wanted + (kept_ ? static_cast<double>(kept_->num_blocks()) : 0);
    const double capacity = static_cast<double>(blocks_.capacity());
    // Growing copies everything: not a little for each of many calls that come one by one.
    return std::min(needed > capacity ? std::max(needed, 1.5 * capacity) : needed, limit);
}

void Engine::grow_cache(const Call& added) {
    grow_cache_to(blocks_wanted_now() + blocks_wanted(added, blocks_), &added);
}

void Engine::grow_cache_to(double wanted, const Call* added) {
    const double most = static_cast<double>(std::min<int64_t>(most_blocks(), INT32_MAX));
    const int64_t capacity = static_cast<int64_t>(std::min(blocks_to_hold(wanted, most), most));
    const NeutralMode mode(home_.stream());
    grow_blocks(capacity, std::min(least_blocks(added), capacity));
    blocks_.grow(cache_.num_blocks());
    share_cache_left(added);
}

// Free memory may lie in pieces, or be another's by now. Rows wait for one another where there are fewer blocks.
void Engine::grow_blocks(int64_t capacity, int64_t least) {
    for (std::optional<int64_t> next = capacity; next;) {
        try {
            return cache_.grow(*next);
        } catch (const c10::Error& error) {
            if (!is_out_of_memory(error)) throw;
            next = fewer_blocks(*next, cache_.num_blocks(), least);
            if (cache_.num_blocks() == 0) cache_.clear();  // of the tensors that could be had
        }
    }
    const double block_bytes = static_cast<double>(cache_.block_bytes());
    throw NoRoom("The longest row needs " + megabytes(static_cast<double>(least) * block_bytes) +
                 " of key/value cache, and " + weights_.device().str() + " did not give it, though " +
                 megabytes(static_cast<double>(free_bytes(weights_.device()))) +
                 " are free in pieces; free memory or ask for shorter rows.");
}

std::shared_ptr<DraftModel> Engine::draft_model_of(const std::shared_ptr<const Weights>& weights) const {
    for (const auto& call : calls_) {
        if (call->draft_model && call->draft_model->weights().same_layout(*weights)) return call->draft_model;
    }
    return std::make_shared<DraftModel>(weights, kBlockSize, max_step_tokens_, weights_.bytes_of_step());
}

// Of the calls under way, each once.
std::vector<DraftModel*> Engine::draft_models(const Call* added) const {
    std::vector<DraftModel*> models;
    const auto see = [&models](const Call& call) {
        DraftModel* model = call.draft_model.get();
        if (model && std::find(models.begin(), models.end(), model) == models.end()) models.push_back(model);
    };
    for (const auto& call : calls_) see(*call);
    if (added) see(*added);
    return models;
}

// The caches of draft models get what the engine's own leaves. With less than they want they bring fewer drafts.
void Engine::share_cache_left(const Call* added) {
    const std::vector<DraftModel*> models = draft_models(added);
    int64_t left = cache_bytes_ ? *cache_bytes_ - cache_.num_blocks() * cache_.block_bytes() : 0;
    for (DraftModel* model : models) {
        double wanted = added && added->draft_model.get() == model ? blocks_wanted(*added, blocks_) : 0;
        for (const auto& call : calls_) wanted += call->draft_model.get() == model ? blocks_wanted(*call, blocks_) : 0;
        const int64_t held = model->num_blocks() * model->block_bytes();
        if (!cache_bytes_) left = budget(held);
        const double most = static_cast<double>(std::min<int64_t>(left / model->block_bytes(), INT32_MAX));
        const double blocks = std::min(std::max(wanted, static_cast<double>(model->num_blocks())), most);
        model->resize(static_cast<int64_t>(blocks));
        left -= static_cast<int64_t>(blocks) * model->block_bytes();
    }
}

void Engine::give_cache_back() {
    scheduler_.pending_copies().clear();
    blocks_.clear();
    if (loop_) loop_->forget();
    cache_.clear();
    decoder_.forget();
}

}  // namespace demiurgic
