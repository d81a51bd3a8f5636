#include "late_loop.h"

#include <algorithm>
#include <map>

#include "philox.h"

namespace demiurgic {

void LateLoop::Row::count(int64_t token, bool counted) {
    uint32_t& count = counts[token];
    count = (count + counted) | kInContext;
}

// Steps 1 to 5 of the order of sampling, for the token that comes next.
std::vector<TokenEdit> LateLoop::Row::edits_now() const {
    std::map<int64_t, TokenEdit> now;  // by token
    const auto edit_of = [&now](int64_t token) -> TokenEdit& {
        return now.try_emplace(token, TokenEdit{token}).first->second;
    };
    for (const StepEdit& edit : edits) {
        edit_of(edit.token).bias = edit.bias;
        edit_of(edit.token).bans = sequence->size() < edit.banned_before;
    }
    for (const auto& [token, count] : counts) {
        const uint32_t counted = count & ~kInContext;
        edit_of(token).repetition = options.repetition;
        edit_of(token).frequency = options.frequency * static_cast<float>(counted);
        edit_of(token).presence = counted > 0 ? options.presence : 0.0f;
    }
    std::vector<TokenEdit> list;
    for (const auto& [token, edit] : now) list.push_back(edit);
    return list;
}

void LateLoop::Row::accept(int64_t token) {
    rests = token < 0;
    if (rests) return;
    sequence->append(token);
    if (needs_counts) count(token, true);
    for (const StepEdit& edit : edits) rests |= edit.ends && edit.token == token;
    rests |= sequence->size() >= limit;
}

void LateLoop::begin(const std::vector<LoopRow>& rows) {
    auto config = std::make_shared<GenerationConfig>();
    config->eos_token_id = Ids{};
    most_blocks_ = 2;
    rows_.clear();
    for (const LoopRow& given : rows) {
        const std::vector<int64_t> tokens(given.tokens, given.tokens + given.num_tokens);
        auto sequence = std::make_unique<Sequence>(tokens, config, given.options.seed);
        sequence->blocks = given.blocks;
        Row& row = rows_.emplace_back(
            Row{given.options, given.edits, {}, std::move(sequence), given.limit, given.needs_counts});
        for (int64_t i = 0; i < given.num_tokens && row.needs_counts; ++i) {
            row.count(tokens[static_cast<size_t>(i)], i >= given.first_counted);
        }
        // Some rows outgrow it: a device's table has its limits too.
        most_blocks_ = std::max(most_blocks_, static_cast<int64_t>(given.blocks.size()) + 2);
    }
}

void LateLoop::extend(int64_t row, const std::vector<int32_t>& blocks, int64_t limit) {
    rows_[static_cast<size_t>(row)].sequence->blocks = blocks;
    rows_[static_cast<size_t>(row)].limit = limit;
}

void LateLoop::launch() {
    std::vector<Work> work;
    std::vector<Row*> live;
    std::vector<std::vector<TokenEdit>> edits;
    bool want_logprobs = false;
    for (Row& row : rows_) {
        if (row.rests) continue;
        live.push_back(&row);
        edits.push_back(row.edits_now());
        want_logprobs |= row.options.want_logprobs;
        work.push_back({row.sequence.get(), row.sequence->size() - 1, 1});
    }
    std::vector<StepResult>& results = results_.emplace_back(rows_.size(), StepResult{});
    if (work.empty()) return;
    const at::Tensor logits = decoder_.decode(Batch(work, block_size_, device_), cache_, [] {});
    std::vector<SampleRow> options;
    for (size_t i = 0; i < live.size(); ++i) {
        const StepSampling& row = live[i]->options;
        options.push_back({edits[i].data(), static_cast<int64_t>(edits[i].size()), row.greedy, row.temperature,
                           row.top_k, row.nucleus, row.typical, row.min_p,
                           token_bits(row.seed, static_cast<uint64_t>(live[i]->sequence->size()))});
    }
    std::vector<Sample> samples(options.size());
    kernels_.sample(context_, {logits, options, want_logprobs, samples});
    for (size_t i = 0; i < live.size(); ++i) {
        const int64_t position = live[i]->sequence->size();
        live[i]->accept(samples[i].token);
        results[static_cast<size_t>(live[i] - rows_.data())] = {
            samples[i].token, samples[i].logprob, samples[i].processed_logprob, live[i]->rests, 0, position};
    }
}

bool LateLoop::arrived() {
    constexpr int times = 3;
    return num_asked_++ == times;
}

std::vector<StepResult> LateLoop::read() {
    num_asked_ = 0;
    std::vector<StepResult> results = std::move(results_.front());
    results_.pop_front();
    return results;
}

}  // namespace demiurgic
