#pragma once

#include <ATen/core/Tensor.h>

// What the sampler looks for in a vocabulary, without sorting or scanning all of it, which is slow on MPS: by sums over
// chunks, over what lies before a number, and among the few largest. R rows, V tokens.
namespace demiurgic {

at::Tensor ids_of(const at::Tensor& logits);  // 0 to V - 1, [V] int64

// The lowest id at which the sum of `masses` [R, V] up to and with it is more than `goal` [R, 1]; V - 1 where it never is.
at::Tensor first_beyond(const at::Tensor& masses, const at::Tensor& goal);

// The lowest id among the largest logits [R, V], [R].
at::Tensor most_likely(const at::Tensor& logits);

// The `count` most likely tokens, the most likely first and the lowest id first on ties, [R, count].
at::Tensor most_likely(const at::Tensor& logits, int64_t count);

// The number [R, 1] in `order` [R, V] up to and with which the sum of `masses`, in ascending order, first reaches `target`
// [R, 1].
at::Tensor crossing(const at::Tensor& order, const at::Tensor& masses, const at::Tensor& target);

}  // namespace demiurgic
