#include "kernels/reference_search.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/amax.h>
#include <ATen/ops/amin.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cumsum.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

namespace demiurgic {

at::Tensor ids_of(const at::Tensor& logits) { return at::arange(logits.size(-1), logits.options().dtype(at::kLong)); }

at::Tensor first_beyond(const at::Tensor& masses, const at::Tensor& goal) {
    constexpr int64_t chunk = 512;
    const int64_t num_rows = masses.size(0), vocab = masses.size(1), num_chunks = (vocab + chunk - 1) / chunk;
    at::Tensor padded = at::zeros({num_rows, num_chunks * chunk}, masses.options());
    padded.narrow(1, 0, vocab).copy_(masses);
    const at::Tensor chunks = padded.view({num_rows, num_chunks, chunk}), sums = at::sum(chunks, -1);
    const at::Tensor up_to = at::cumsum(sums, -1);  // [R, chunks]
    const at::Tensor which = at::sum(up_to <= goal, -1, true).clamp_max(num_chunks - 1);
    const at::Tensor inside = chunks.gather(1, which.unsqueeze(-1).expand({-1, 1, chunk})).squeeze(1);  // [R, chunk]
    const at::Tensor before = up_to.gather(1, which) - sums.gather(1, which);
    const at::Tensor place = at::sum(before + at::cumsum(inside, -1) <= goal, -1, true);
    return (which * chunk + place).clamp_max(vocab - 1);
}

at::Tensor most_likely(const at::Tensor& logits) {
    const at::Tensor ids = ids_of(logits).expand_as(logits);
    const at::Tensor best = logits == at::amax(logits, -1, true);
    return at::amin(at::where(best, ids, at::full_like(ids, logits.size(-1) - 1)), -1);
}

at::Tensor most_likely(const at::Tensor& logits, int64_t count) {
    const int64_t vocab = logits.size(-1);
    const at::Tensor last = std::get<0>(at::topk(logits, count, -1)).narrow(-1, count - 1, 1);
    const at::Tensor above = logits > last, tied = logits == last, ids = ids_of(logits);
    const at::Tensor last_tied = first_beyond(tied.to(at::kLong), count - 1 - at::sum(above, -1, true));
    const at::Tensor listed = above.logical_or(tied.logical_and(ids <= last_tied));
    // topk leaves open which of equal numbers comes first, but ids are distinct. The others stand for the last id, which is
    // where they do no harm in a row of NaN, too.
    const at::Tensor backwards = at::where(listed, -ids, at::full_like(ids, 1 - vocab)).to(at::kInt);
    const at::Tensor ascending = -std::get<0>(at::topk(backwards, count, -1)).to(at::kLong);  // [R, count]
    const at::Tensor order = std::get<1>(at::sort(-logits.gather(-1, ascending), /*stable=*/true, -1, false));
    return ascending.gather(-1, order);
}

namespace {

// Of float32 numbers, seen as their bits: integers that are ordered as the numbers are. It is its own inverse.
at::Tensor ordered(const at::Tensor& bits) { return at::where(bits < 0, bits.bitwise_xor(0x7fffffff), bits); }

}  // namespace

// Bit by bit from the highest: the largest integer before which the target is not reached.
at::Tensor crossing(const at::Tensor& order, const at::Tensor& masses, const at::Tensor& target) {
    const at::Tensor keys = ordered((order + 0.0f).view(at::kInt));  // one zero, not two
    at::Tensor found = at::full_like(target, std::numeric_limits<int32_t>::min(), at::kInt);
    for (int bit = 31; bit >= 0; --bit) {
        const at::Tensor higher = found.bitwise_xor(static_cast<int32_t>(uint32_t{1} << bit));
        const at::Tensor mass_before = at::sum(masses * (keys < higher), -1, true);
        found = at::where(mass_before < target, higher, found);
    }
    return ordered(found).view(at::kFloat);
}

}  // namespace demiurgic
