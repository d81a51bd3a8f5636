#include "kernels/reference.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/gelu.h>
#include <ATen/ops/linear.h>
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

// Where the N tokens stand in a cache [blocks, kv_heads, block_size, d].
struct Slots {
    Slots(const at::Tensor& slots, int64_t block_size)
        : block(slots.floor_divide(block_size)), offset(slots.remainder(block_size)) {}

    // values [N, kv_heads, d]
    void put(at::Tensor& cache, const at::Tensor& values) const {
        cache.transpose(1, 2).index_put_({block, offset}, values);
    }

    at::Tensor block, offset;  // [N]
};

void embed(Context&, const EmbedArgs& args) { args.out.copy_(at::embedding(args.table, args.tokens)); }

void attention_in(Context&, const AttentionInArgs& args) {
    const int64_t n = args.x.size(0), kv_heads = args.k_cache.size(1), d = args.k_cache.size(3);
    const at::Tensor x = rms_norm(args.x, args.norm, args.norm_eps);
    args.q_out.copy_(rotate(product(args.q, x).view({n, -1, d}), args.cos, args.sin));
    const Slots slots(args.slots, args.k_cache.size(2));
    slots.put(args.k_cache, rotate(product(args.k, x).view({n, kv_heads, d}), args.cos, args.sin));
    slots.put(args.v_cache, product(args.v, x).view({n, kv_heads, d}));
}

// Consecutive positions of a sequence: keys and values [kv_heads, positions, d] float32.
struct Piece {
    at::Tensor keys, values;
};

// The first `length` positions in blocks [n, kv_heads, block_size, d]. Nothing is copied if they are float32 and a run in a
// cache that lies by head.
at::Tensor positions_in(const at::Tensor& blocks, int64_t length) {
    return blocks.transpose(0, 1).flatten(1, 2).narrow(1, 0, length).to(at::kFloat);
}

// Beyond so many runs of blocks, a copy of all of them to one place costs less than a product for each.
constexpr size_t kMostPieces = 4;

// What row `i` attends to. A prompt that several rows share is one piece, what follows it another.
std::vector<Piece> pieces_of(const AttendArgs& args, size_t i) {
    const int64_t length = args.rows[i].context_length, block_size = args.k_cache.size(2);
    const std::vector<BlockRun>& runs = args.block_runs[i];
    std::vector<Piece> pieces;
    if (runs.size() > kMostPieces) {
        const at::Tensor table = args.block_table.select(0, static_cast<int64_t>(i));
        const at::Tensor blocks = table.narrow(0, 0, (length + block_size - 1) / block_size);
        pieces.push_back({positions_in(args.k_cache.index_select(0, blocks), length),
                          positions_in(args.v_cache.index_select(0, blocks), length)});
        return pieces;
    }
    int64_t first = 0;
    for (const BlockRun& run : runs) {
        const int64_t count = std::min(run.count * block_size, length - first);
        pieces.push_back({positions_in(args.k_cache.narrow(0, run.first, run.count), count),
                          positions_in(args.v_cache.narrow(0, run.first, run.count), count)});
        first += count;
    }
    return pieces;
}

// Those of the first `length` positions.
std::vector<Piece> first_of(const std::vector<Piece>& pieces, int64_t length) {
    std::vector<Piece> found;
    for (const Piece& piece : pieces) {
        const int64_t count = std::min(piece.keys.size(1), length);
        if (count == 0) break;
        found.push_back({piece.keys.narrow(1, 0, count), piece.values.narrow(1, 0, count)});
        length -= count;
    }
    return found;
}

// Attention of n consecutive tokens over `pieces`, at whose last position the last of them stands. The scores of all
// pieces stand side by side under one softmax, so that no piece's sum needs to be corrected for another's. Query heads that
// share a key head are rows of one product: keys and values are never expanded.
// q [n, heads, d]; returns [n, heads, d] float32
at::Tensor attend_tokens(const at::Tensor& q, const std::vector<Piece>& pieces, double scale) {
    const int64_t n = q.size(0), heads = q.size(1), d = q.size(2), kv_heads = pieces.front().keys.size(0);
    const int64_t group = heads / kv_heads;  // query heads that share a key head
    const at::Tensor queries = (q.to(at::kFloat) * scale)
                                   .view({n, kv_heads, group, d})
                                   .permute({1, 2, 0, 3})
                                   .reshape({kv_heads, group * n, d});
    std::vector<at::Tensor> by_piece;
    for (const Piece& piece : pieces) by_piece.push_back(at::bmm(queries, piece.keys.transpose(1, 2)));
    at::Tensor scores =
        by_piece.size() == 1 ? by_piece.front() : at::cat(by_piece, -1);  // [kv_heads, group * n, length]
    const int64_t length = scores.size(2);
    if (n > 1) {
        const at::Tensor position = at::arange(length, q.options().dtype(at::kLong));
        const at::Tensor future =
            position.unsqueeze(0) > position.narrow(0, length - n, n).unsqueeze(1);  // [n, length]
        scores = scores.view({kv_heads, group, n, length})
                     .masked_fill(future, -std::numeric_limits<float>::infinity())
                     .view({kv_heads, group * n, length});
    }
    const at::Tensor probabilities = at::softmax(scores, -1);
    at::Tensor out;  // [kv_heads, group * n, d]
    int64_t first = 0;
    for (const Piece& piece : pieces) {
        const int64_t count = piece.keys.size(1);
        const at::Tensor part = at::bmm(probabilities.narrow(2, first, count), piece.values);
        out = out.defined() ? out + part : part;
        first += count;
    }
    return out.view({kv_heads, group, n, d}).permute({2, 0, 1, 3}).reshape({n, heads, d});
}

// Scores held at a time; a long prompt is walked in pieces so that memory does not grow with its square.
constexpr int64_t kMostScores = 1 << 21;

void attend(Context&, const AttendArgs& args) {
    const int64_t heads = args.q.size(1);
    for (size_t i = 0; i < args.rows.size(); ++i) {
        const BatchRow& row = args.rows[i];
        const std::vector<Piece> pieces = pieces_of(args, i);
        const int64_t most = std::max<int64_t>(1, kMostScores / (heads * row.context_length));
        const int64_t first_position = row.context_length - row.num_tokens;
        for (int64_t done = 0; done < row.num_tokens; done += most) {
            const int64_t n = std::min(most, row.num_tokens - done);
            const at::Tensor q = args.q.narrow(0, row.first + done, n);
            args.out.narrow(0, row.first + done, n)
                .copy_(attend_tokens(q, first_of(pieces, first_position + done + n), args.scale));
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
