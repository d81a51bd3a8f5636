#include "steps_ahead.h"

#include <algorithm>
#include <stdexcept>
#include <thread>

#include "step_sampling.h"

namespace demiurgic {

namespace {

// Whether the row needs nothing of the host between two tokens.
bool runs_alone(const Sequence& sequence) {
    const GenerationConfig& config = *sequence.config;
    const Call& call = *sequence.call;
    return !sequence.scored && config.use_cache && !call.hooks && !call.draft_model && config.speculate.empty() &&
           device_state_suffices(config);
}

bool is_plain(const Work& part) {
    const Sequence& sequence = *part.sequence;
    return part.count == 1 && part.gives_token() && part.drafts.empty() && part.start >= sequence.prompt_length &&
           runs_alone(sequence);
}

// The position of the token that a part of a step gives.
int64_t token_position(const Work& part) { return part.start + 1; }

}  // namespace

bool StepsAhead::takes(const std::vector<Work>& work, const DecodeLoop& loop) {
    return !work.empty() && static_cast<int64_t>(work.size()) <= loop.most_rows() &&
           std::all_of(work.begin(), work.end(), is_plain);
}

// The last token of a row has no place in the cache.
int64_t StepsAhead::limit_of(const Sequence& sequence) const {
    return std::min(sequence.max_tokens, static_cast<int64_t>(sequence.blocks.size()) * block_size_ + 1);
}

LoopRow StepsAhead::loop_row(const Sequence& sequence) const {
    const GenerationConfig& config = *sequence.config;
    return {sequence.id,
            sequence.tokens.data(),
            sequence.size(),
            first_counted(config, sequence.prompt_length),
            needs_counts(config),
            step_sampling(config, sequence.seed, vocab_, sequence.call->want_logprobs),
            step_edits(config, sequence.prompt_length, vocab_),
            sequence.blocks,
            limit_of(sequence)};
}

void StepsAhead::begin(const std::vector<Work>& work) {
    std::vector<LoopRow> rows;
    for (const Work& part : work) {
        const Sequence& sequence = *part.sequence;
        rows.push_back(loop_row(sequence));
        rows_.push_back({&sequence, sequence.blocks.size(), rows.back().limit, sequence.size(), false});
    }
    loop_.begin(rows);
}

void StepsAhead::go_on(const std::vector<Work>& work) {
    auto part = work.begin();
    for (size_t i = 0; i < rows_.size(); ++i) {
        Row& row = rows_[i];
        const int64_t index = static_cast<int64_t>(i);
        const bool goes_on = part != work.end() && part->sequence == row.sequence;
        if (!goes_on) {
            if (!row.rests && row.num_tokens < row.limit) loop_.rest(index);
            row.rests = true;
            continue;
        }
        ++part;
        if (row.sequence->blocks.size() == row.num_blocks) continue;
        row.num_blocks = row.sequence->blocks.size();
        row.limit = limit_of(*row.sequence);
        loop_.extend(index, row.sequence->blocks, row.limit);
    }
}

void StepsAhead::launch(std::vector<Work> work) {
    if (rows_.empty()) {
        begin(work);
    } else {
        go_on(work);
    }
    loop_.launch();
    for (Row& row : rows_) row.num_tokens += !row.rests;
    in_flight_.push_back(std::move(work));
}

bool StepsAhead::may_go_on() const {
    // A loop makes its steps for the rows that it began with: half of them gone, it is time for a smaller step.
    if (newest().size() <= rows_.size() / 2) return false;
    // The next step may need one block more.
    return std::all_of(newest().begin(), newest().end(), [this](const Work& part) {
        return static_cast<int64_t>(part.sequence->blocks.size()) < loop_.most_blocks();
    });
}

StepsAhead::Results StepsAhead::read(const std::function<void()>& poll) {
    poll();
    while (!loop_.arrived()) {
        std::this_thread::yield();
        poll();
    }
    const std::vector<StepResult> given = loop_.read();
    Results results;
    auto row = rows_.begin();
    for (Work& part : in_flight_.front()) {
        while (row->sequence != part.sequence) ++row;
        // Ended, or cut off by who cancelled its call, before the token that this step went on from was accepted.
        if (part.sequence->finished() || !part.gives_token()) continue;
        const StepResult& result = given[static_cast<size_t>(row - rows_.begin())];
        if (result.position != token_position(part)) {
            throw std::logic_error("The device left out a row that was to get a token; please report this.");
        }
        row->rests |= result.rests != 0;
        results.work.push_back(std::move(part));
        results.samples.push_back({result.token, result.logprob, result.processed_logprob});
    }
    in_flight_.pop_front();
    return results;
}

}  // namespace demiurgic
