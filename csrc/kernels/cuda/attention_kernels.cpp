#include "kernels/cuda/attention_kernels.h"

#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cstring>

#include "kernels/cuda/attention.h"

namespace demiurgic::cuda {

// How the queries of a step are cut: made once for all layers that have as many query heads to a key head.
struct AttendPlan {
    std::vector<BatchRow> rows;
    int64_t group = 0;
    at::Tensor on_device;           // int64: the rows, then the tiles of each cut
    std::vector<AttendTiles> cuts;  // by the number of queries in a tile
    at::Tensor scratch;
};

namespace {

static_assert(sizeof(BatchRow) == 3 * sizeof(int64_t) && sizeof(AttendTile) == sizeof(int64_t));

// Rows of one token and rows of many get tiles of their own sizes.
void cut(AttendPlan& plan, const std::vector<BatchRow>& rows, int64_t group, at::Device device) {
    plan.rows = rows;
    plan.group = group;
    plan.cuts.clear();
    std::vector<AttendTile> all;
    std::vector<size_t> begins;
    for (const int queries : {1, 4, 8, 16}) {
        std::vector<int32_t> which;
        for (size_t i = 0; i < rows.size(); ++i) {
            if (attend_queries(rows[i].num_tokens * group) == queries) which.push_back(static_cast<int32_t>(i));
        }
        const std::vector<AttendTile> tiles = attend_tiles_of(rows, which, group, queries);
        if (tiles.empty()) continue;
        plan.cuts.push_back({queries, static_cast<int64_t>(tiles.size()), 0});
        begins.push_back(all.size());
        all.insert(all.end(), tiles.begin(), tiles.end());
    }
    const size_t row_bytes = rows.size() * sizeof(BatchRow), tile_bytes = all.size() * sizeof(AttendTile);
    const auto size = static_cast<int64_t>((row_bytes + tile_bytes) / sizeof(int64_t));
    const at::TensorOptions options = at::TensorOptions().dtype(at::kLong);
    const at::Tensor host = at::empty({size}, options.pinned_memory(true));
    auto* bytes = static_cast<char*>(host.data_ptr());
    std::memcpy(bytes, rows.data(), row_bytes);
    std::memcpy(bytes + row_bytes, all.data(), tile_bytes);
    plan.on_device = host.to(device, /*non_blocking=*/true);
    const auto* list = reinterpret_cast<const AttendTile*>(static_cast<char*>(plan.on_device.data_ptr()) + row_bytes);
    for (size_t i = 0; i < plan.cuts.size(); ++i) plan.cuts[i].list = list + begins[i];
}

using Launcher = cudaError_t (*)(const Attend&, cudaStream_t, bool);

Launcher launcher_for(at::ScalarType dtype) {
    switch (dtype) {
        case at::kFloat:
            return attend_float32;
        case at::kBFloat16:
            return attend_bfloat16;
        case at::kHalf:
            return attend_float16;
        default:
            return nullptr;
    }
}

bool is_plain(const at::Tensor& tensor, at::ScalarType dtype) {
    return tensor.scalar_type() == dtype && tensor.is_contiguous() &&
           reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
}

bool can_take(const AttendArgs& args) {
    const at::ScalarType dtype = args.k_cache.scalar_type();
    const int64_t d = args.q.size(2);
    return launcher_for(dtype) && is_plain(args.k_cache, dtype) && is_plain(args.v_cache, dtype) &&
           is_plain(args.q, at::kFloat) && is_plain(args.out, at::kFloat) && is_plain(args.block_table, at::kLong) &&
           args.k_cache.size(2) == kAttendBlock && d % 8 == 0 && d <= kMostHeadDim;
}

}  // namespace

void attend(Context& context, const AttendArgs& args) {
    if (!can_take(args)) {
        reference_kernels().attend(context, args);
        return;
    }
    const c10::cuda::CUDAGuard guard(context.device);
    const int64_t heads = args.q.size(1), kv_heads = args.k_cache.size(1), d = args.q.size(2);
    const int64_t most_blocks = args.block_table.size(1);
    if (!context.attend_plan) context.attend_plan = std::make_shared<AttendPlan>();
    AttendPlan& plan = *context.attend_plan;
    if (plan.rows != args.rows || plan.group != heads / kv_heads)
        cut(plan, args.rows, heads / kv_heads, context.device);
    for (const AttendTiles& tiles : plan.cuts) {
        void* scratch = nullptr;
        if (attend_splits(tiles, kv_heads, most_blocks)) {
            const int64_t bytes = attend_scratch_bytes(tiles, kv_heads, d, most_blocks);
            if (!plan.scratch.defined() || plan.scratch.size(0) < bytes) {
                plan.scratch = at::Tensor();  // first: both at once might not fit
                plan.scratch = at::empty({bytes}, args.q.options().dtype(at::kByte));
            }
            scratch = plan.scratch.data_ptr();
        }
        const Attend attend{args.q.const_data_ptr<float>(),
                            args.k_cache.const_data_ptr(),
                            args.v_cache.const_data_ptr(),
                            static_cast<const BatchRow*>(plan.on_device.const_data_ptr()),
                            args.block_table.const_data_ptr<int64_t>(),
                            most_blocks,
                            heads,
                            kv_heads,
                            d,
                            static_cast<float>(args.scale),
                            tiles,
                            args.out.mutable_data_ptr<float>(),
                            scratch};
        C10_CUDA_CHECK(launcher_for(args.k_cache.scalar_type())(
            attend, c10::cuda::getCurrentCUDAStream(context.device.index()), /*overlaps_previous=*/false));
    }
}

}  // namespace demiurgic::cuda
