// What an engine that keeps prefixes offers to a session; the rest of Engine is in engine.cpp.
#include <algorithm>
#include <sstream>
#include <stdexcept>

#include "engine.h"
#include "fingerprint.h"
#include "neutral_mode.h"

namespace demiurgic {

uint64_t Engine::fingerprint() const {
    const HomeStream::Visit visit(home_);
    const NeutralMode mode(home_.stream());
    return fingerprint_of(weights_, kernels_);
}

bool Engine::keep_prefixes_of(uint64_t fingerprint) {
    const std::lock_guard lock(mutex_);
    if (fingerprint_ == fingerprint) return false;
    const bool drops = kept_->num_blocks() > 0;
    kept_->clear();
    fingerprint_ = fingerprint;
    return drops;
}

void Engine::settle(Call& call) {
    if (!call.keeps_if_settled) return;
    {
        const std::lock_guard lock(mutex_);
        if (!scheduler_.has_left(call)) return scheduler_.settle(call, /*keeps=*/false);
    }
    const uint64_t now = fingerprint();
    const std::lock_guard lock(mutex_);
    scheduler_.settle(call, fingerprint_ == now);
}

void Engine::forget(Call& call) {
    const std::lock_guard lock(mutex_);
    scheduler_.settle(call, /*keeps=*/false);
}

void Engine::clear_prefixes(const Poll& poll) {
    std::unique_lock lock(mutex_);
    wait_for_step(lock, poll);
    kept_->clear();
    while (scheduler_.drop_left()) {
    }
    if (!calls_.empty()) return;
    give_cache_back();
}

void Engine::check_fingerprint(uint64_t fingerprint) const {
    if (fingerprint_ == fingerprint) return;
    throw std::runtime_error(
        "The weights have changed while a prefix was saved or loaded; leave them alone until that is done.");
}

KVCache::Content Engine::read_prefix(const std::vector<int64_t>& tokens, uint64_t fingerprint, const Poll& poll) {
    const HomeStream::Visit visit(home_);
    std::unique_lock lock(mutex_);
    wait_for_step(lock, poll);
    check_fingerprint(fingerprint);
    const PrefixIndex::Prefix prefix = kept_->find(tokens, static_cast<int64_t>(tokens.size()));
    if (prefix.num_tokens < static_cast<int64_t>(tokens.size())) {
        throw NoRoom("Of the " + std::to_string(tokens.size()) +
                     " tokens to be saved, the session holds only the first " + std::to_string(prefix.num_tokens) +
                     ": other calls have driven the rest out. Save while no other call is under way, or raise the "
                     "session's cache_bytes.");
    }
    const NeutralMode mode(home_.stream());
    return cache_.read(prefix.blocks, prefix.num_tokens);
}

void Engine::check_content(const std::vector<int64_t>& tokens, const KVCache::Content& content) const {
    const ModelConfig& config = weights_.config();
    for (const int64_t id : tokens) {
        if (id < 0 || id >= config.vocab_size) {
            throw std::out_of_range("The prefix holds the id " + std::to_string(id) +
                                    ", but the vocabulary has the ids 0 to " + std::to_string(config.vocab_size - 1) +
                                    ".");
        }
    }
    const LayerConfig& layer = config.layers.at(0);
    const std::vector<int64_t> shape{static_cast<int64_t>(config.layers.size()), layer.num_kv_heads,
                                     static_cast<int64_t>(tokens.size()), layer.head_dim};
    for (const at::Tensor& tensor : {content.keys, content.values}) {
        if (tensor.sizes() == at::IntArrayRef(shape) && tensor.scalar_type() == weights_.dtype()) continue;
        std::ostringstream message;
        message << "The prefix holds keys or values of shape " << tensor.sizes() << " and type " << tensor.scalar_type()
                << ", but " << tokens.size() << " tokens of this model have " << at::IntArrayRef(shape) << " of type "
                << weights_.dtype() << ".";
        throw std::invalid_argument(message.str());
    }
}

void Engine::write_prefix(const std::vector<int64_t>& tokens, const KVCache::Content& content, uint64_t fingerprint,
                          const Poll& poll) {
    check_content(tokens, content);
    const HomeStream::Visit visit(home_);
    const int64_t num_tokens = static_cast<int64_t>(tokens.size()), num_blocks = blocks_.blocks_for(num_tokens);
    std::unique_lock lock(mutex_);
    wait_for_step(lock, poll);
    check_fingerprint(fingerprint);
    grow_cache_to(blocks_wanted_now() + static_cast<double>(num_blocks));
    while (blocks_.num_free() < num_blocks && (kept_->evict() || scheduler_.drop_left())) {
    }
    std::vector<int32_t> table;
    if (!blocks_.extend(table, num_tokens)) {
        throw NoRoom("A prefix of " + std::to_string(num_tokens) + " tokens" + needs(num_blocks, most_blocks()) +
                     "; load a shorter one" + (cache_bytes_ ? ", raise cache_bytes" : "") +
                     " or wait until other calls of the session have ended.");
    }
    const NeutralMode mode(home_.stream());
    try {
        cache_.write(table, content);
        kept_->keep(tokens, num_tokens, table);
    } catch (...) {
        blocks_.release(table);
        throw;
    }
    blocks_.release(table);
}

std::string Engine::kernels() const {
    std::ostringstream text;
    text << weights_.device().type() << " " << kernels_.attend.implementation;
    if (kernels_.make_library) text << ", products by " << kernels_.attention_in.implementation;
    return text.str();
}

}  // namespace demiurgic
