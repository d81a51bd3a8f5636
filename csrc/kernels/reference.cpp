#include "kernels/reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/mean.h>
#include <ATen/ops/relu.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <limits>

// Every operation of the decoder in plain ATen, on any device: the meaning that faster kernels are compared with. Only
// operations that have a kernel on MPS too (tests/test_mps_coverage.py), and no float64 tensor, which MPS lacks.
namespace demiurgic {

namespace {

at::Tensor product(const Linear& linear, const at::Tensor& x) { return at::linear(x, linear.weight, linear.bias); }

// RMSNorm (Zhang and Sennrich, 2019) in float32, cast to x's dtype before the weight is applied.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor scale = at::rsqrt(at::mean(wide * wide, -1, /*keepdim=*/true) + eps);
    return ((wide * scale).to(x.scalar_type()) * weight).to(x.scalar_type());
}

// Half-rotation form: the first and second half of a head are the two coordinates that turn.
// x [N, heads, d]; cos, sin [N, d / 2] float32
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
    const int64_t half = x.size(2) / 2;
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor first = wide.narrow(2, 0, half), second = wide.narrow(2, half, half);
    const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
    return at::cat({first * c - second * s, second * c + first * s}, 2).to(x.scalar_type());
}

// values [N, kv_heads, d] to the slots [N] of cache [blocks, kv_heads, block_size, d]
void append(at::Tensor& cache, const at::Tensor& slots, const at::Tensor& values) {
    const int64_t block_size = cache.size(2);
    const at::Tensor block = slots.floor_divide(block_size), offset = slots.remainder(block_size);
    cache.transpose(1, 2).index_put_({block, offset}, values);
}

void embed(Context&, const EmbedArgs& args) { args.out.copy_(at::embedding(args.table, args.tokens)); }

void attention_in(Context&, const AttentionInArgs& args) {
    const int64_t n = args.x.size(0), kv_heads = args.k_cache.size(1), d = args.k_cache.size(3);
    const at::Tensor x = rms_norm(args.x, args.norm, args.norm_eps);
    args.q_out.copy_(rotate(product(args.q, x).view({n, -1, d}), args.cos, args.sin));
    append(args.k_cache, args.slots, rotate(product(args.k, x).view({n, kv_heads, d}), args.cos, args.sin));
    append(args.v_cache, args.slots, product(args.v, x).view({n, kv_heads, d}));
}

// The first `length` positions of a sequence, [kv_heads, length, d] float32, from its blocks [most blocks] of the cache.
at::Tensor gather(const at::Tensor& cache, const at::Tensor& blocks, int64_t length) {
    const int64_t kv_heads = cache.size(1), block_size = cache.size(2), d = cache.size(3);
    const int64_t num_blocks = (length + block_size - 1) / block_size;
    const at::Tensor gathered =
        cache.index_select(0, blocks.narrow(0, 0, num_blocks));  // [num, kv_heads, block_size, d]
    return gathered.transpose(0, 1).reshape({kv_heads, num_blocks * block_size, d}).narrow(1, 0, length).to(at::kFloat);
}

// Attention of n consecutive tokens, the last of which is at position `last`, over keys and values [kv_heads, L, d].
// q [n, heads, d]; returns [n, heads, d] float32
at::Tensor attend_piece(const at::Tensor& q, const at::Tensor& keys, const at::Tensor& values, int64_t last,
                        double scale) {
    const int64_t n = q.size(0), heads = q.size(1), d = q.size(2), kv_heads = keys.size(0), length = last + 1;
    const int64_t group = heads / kv_heads;  // query heads that share a key head
    const at::Tensor queries = (q.to(at::kFloat) * scale)
                                   .view({n, kv_heads, group, d})
                                   .permute({1, 2, 0, 3})
                                   .reshape({kv_heads, group * n, d});
    at::Tensor scores =
        at::matmul(queries, keys.narrow(1, 0, length).transpose(1, 2)).view({kv_heads, group, n, length});
    if (n > 1) {
        const at::Tensor position = at::arange(length, q.options().dtype(at::kLong));
        const at::Tensor future =
            position.unsqueeze(0) > position.narrow(0, length - n, n).unsqueeze(1);  // [n, length]
        scores = scores.masked_fill(future, -std::numeric_limits<float>::infinity());
    }
    const at::Tensor probabilities = at::softmax(scores, -1).view({kv_heads, group * n, length});
    const at::Tensor out = at::matmul(probabilities, values.narrow(1, 0, length));  // [kv_heads, group * n, d]
    return out.view({kv_heads, group, n, d}).permute({2, 0, 1, 3}).reshape({n, heads, d});
}

// Scores held at a time; a long prompt is walked in pieces so that memory does not grow with its square.
constexpr int64_t kMostScores = 1 << 21;

void attend(Context&, const AttendArgs& args) {
    const int64_t heads = args.q.size(1);
    for (size_t i = 0; i < args.rows.size(); ++i) {
        const BatchRow& row = args.rows[i];
        const at::Tensor blocks = args.block_table.select(0, static_cast<int64_t>(i));
        const at::Tensor keys = gather(args.k_cache, blocks, row.context_length);
        const at::Tensor values = gather(args.v_cache, blocks, row.context_length);
        const int64_t most = std::max<int64_t>(1, kMostScores / (heads * row.context_length));
        const int64_t first_position = row.context_length - row.num_tokens;
        for (int64_t done = 0; done < row.num_tokens; done += most) {
            const int64_t n = std::min(most, row.num_tokens - done);
            const at::Tensor q = args.q.narrow(0, row.first + done, n);
            args.out.narrow(0, row.first + done, n)
                .copy_(attend_piece(q, keys, values, first_position + done + n - 1, args.scale));
        }
    }
}

void attention_out(Context&, const AttentionOutArgs& args) {
    args.x.add_(product(args.out, args.attended.view({args.x.size(0), -1})));
}

at::Tensor activate(const at::Tensor& x, Activation activation) {
    switch (activation) {
        case Activation::silu:
            return at::silu(x);
        case Activation::gelu:
            return at::gelu(x);
        case Activation::relu:
            return at::relu(x);
    }
    return x;
}

void mlp(Context&, const MlpArgs& args) {
    const at::Tensor x = rms_norm(args.x, args.norm, args.norm_eps);
    const at::Tensor up = product(args.up, x);
    const bool gated = args.gate.weight.defined();
    const at::Tensor inner =
        gated ? activate(product(args.gate, x), args.activation) * up : activate(up, args.activation);
    args.x.add_(product(args.down, inner));
}

void select_rows(Context&, const SelectRowsArgs& args) { args.out.copy_(args.from.index_select(0, args.rows)); }

void head(Context&, const HeadArgs& args) {
    const at::Tensor x = rms_norm(args.x, args.norm, args.norm_eps);
    args.logits.copy_(product(args.head, x));
}

void prepare(Context&, const StepShape&) {}

void run(Context& context, const std::function<void(Context&)>& loop) { loop(context); }

}  // namespace

const Kernels& reference_kernels() {
    static const Kernels table = {
        prepare,
        run,
        {embed, "reference"},
        {attention_in, "reference"},
        {attend, "reference"},
        {attention_out, "reference"},
        {mlp, "reference"},
        {select_rows, "reference"},
        {head, "reference"},
        {reference_sample, "reference"},
        {reference_log_probability, "reference"},
        {reference_checksum, "reference"},
    };
    return table;
}

}  // namespace demiurgic
