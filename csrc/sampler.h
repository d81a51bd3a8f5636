#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "kernels/kernels.h"
#include "reports.h"
#include "sequence.h"

namespace demiurgic {

// Chooses the next tokens by the options of each sequence. Keeps the memory that the kernel works in.
class Sampler {
public:
    Sampler(const Kernels& kernels, at::Device device) : kernels_(kernels), context_{device, kernels.entries} {}

    // Begins a round: the reports of the one before are gone.
    void forget_reports() { reports_.reset(); }

    // The next token of each sequence from its row of `logits` [R, V] float32. Log-probabilities are filled in only where
    // they are wanted, reports too. Sequences are read, not changed; the same state gives the same tokens.
    std::vector<Sample> sample(const at::Tensor& logits, const std::vector<Sequence*>& sequences);

    // A sequence that is to draw the token at `position` of it, at its end or beyond.
    struct Ahead {
        const Sequence* sequence;
        int64_t position;
    };

    // Guesses of what `sample` will give at positions that are not reached yet: with their random numbers, but the edits of
    // the tokens that there are. Without log-probabilities.
    std::vector<Sample> guess(const at::Tensor& logits, const std::vector<Ahead>& rows);

    // A copy of `logits` after steps 1 to 5 of the order of sampling, for hooks of the user's to work on.
    at::Tensor edited(const at::Tensor& logits, const std::vector<Sequence*>& sequences);

    // As `sample`, where `edited` [R, V] float32 holds what steps 1 to 5 and hooks made of `logits`.
    std::vector<Sample> sample_edited(const at::Tensor& edited, const at::Tensor& logits,
                                      const std::vector<Sequence*>& sequences);

private:
    bool read_options(const std::vector<Sequence*>& sequences, int64_t vocab);
    void want_reports(const Sequence& sequence, SampleRow& row);
    void report_raw(const at::Tensor& logits, const std::vector<const Report*>& reports);
    void name_raw(const at::Tensor& logits, bool want_logprobs, std::vector<Sample>& samples);

    const Kernels& kernels_;
    Context context_;
    std::vector<SampleRow> rows_;  // of the call
    ReportMemory reports_;         // of the round
};

}  // namespace demiurgic
