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

    // The next token of each sequence from its row of `logits` [R, V] float32. Log-probabilities are filled in only where
    // they are wanted, reports too: those are valid until the next call. Sequences are read, not changed; the same state
    // gives the same tokens.
    std::vector<Sample> sample(const at::Tensor& logits, const std::vector<Sequence*>& sequences);

private:
    void want_reports(const Sequence& sequence, SampleRow& row);

    const Kernels& kernels_;
    Context context_;
    std::vector<SampleRow> rows_;  // of the step
    ReportMemory reports_;         // of the step
};

}  // namespace demiurgic
