#include "kernels/cuda/attention.h"

#include <algorithm>

// How attention's work is cut, on the host.
namespace demiurgic::cuda {

namespace {

int64_t divided(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int attend_queries(int64_t num) { return num <= 1 ? 1 : num <= 4 ? 4 : num <= 8 ? 8 : 16; }

AttendTiles attend_tiles(int64_t num_rows, int64_t most_tokens, int64_t group) {
    const int queries = attend_queries(most_tokens * group);
    const int64_t per_row = divided(most_tokens * group, queries);
    return {queries, num_rows * per_row, per_row};
}

std::vector<AttendTile> attend_tiles_of(const std::vector<BatchRow>& rows, const std::vector<int32_t>& which,
                                        int64_t group, int queries) {
    std::vector<AttendTile> tiles;
    for (const int32_t row : which) {
        const int64_t num = divided(rows[row].num_tokens * group, queries);
        for (int64_t i = 0; i < num; ++i) tiles.push_back({row, static_cast<int32_t>(i * queries)});
    }
    const auto last_position = [&](const AttendTile& tile) {
        const BatchRow& row = rows[tile.row];
        const int64_t token = std::min(row.num_tokens - 1, (tile.first + queries - 1) / group);
        return row.context_length - row.num_tokens + token;
    };
    std::stable_sort(tiles.begin(), tiles.end(),
                     [&](const AttendTile& a, const AttendTile& b) { return last_position(a) > last_position(b); });
    return tiles;
}

bool attend_splits(const AttendTiles& tiles, int64_t kv_heads, int64_t most_blocks) {
    constexpr int64_t blocks_to_fill_a_gpu = 512;  // some for each of 100 to 150 multiprocessors
    return most_blocks * kAttendBlock > kAttendPiece && tiles.num * kv_heads < blocks_to_fill_a_gpu;
}

// For each query and piece: sums [d], and the largest score and the total.
int64_t attend_scratch_bytes(const AttendTiles& tiles, int64_t kv_heads, int64_t d, int64_t most_blocks) {
    const int64_t pieces = divided(most_blocks * kAttendBlock, kAttendPiece);
    return tiles.num * kv_heads * tiles.queries * pieces * (d + 2) * static_cast<int64_t>(sizeof(float));
}

}  // namespace demiurgic::cuda
