#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <vector>

#include "kernels/types.h"

// Paged attention over plain pointers to device memory. A query's bits depend on the query and its context alone, so
// everything here that says how the work is cut is free: tiles, the number of queries in them, split or not.
// N: tokens, S: rows, d: head dimension, T: type of the cache.
namespace demiurgic::cuda {

constexpr int64_t kAttendBlock = 16;   // positions of a cache block
constexpr int64_t kAttendPiece = 256;  // positions of a piece
constexpr int64_t kMostHeadDim = 256;  // and d is a multiple of 8

// Queries of one row that share a key head, from `first` on. Query i is of the row's token i / group and of the key head's
// query head i % group, where group = heads / kv_heads.
struct AttendTile {
    int32_t row, first;
};

// How the queries are dealt out to blocks: `num` tiles of up to `queries` for each key head.
struct AttendTiles {
    int queries;                       // 1, 4, 8 or 16
    int64_t num;                       //
    int64_t per_row;                   // without a list every row has so many, its first ones first
    const AttendTile* list = nullptr;  // [num] in device memory
};

// For rows of up to `most_tokens` tokens each, whatever their number turns out to be on the device: for captures.
AttendTiles attend_tiles(int64_t num_rows, int64_t most_tokens, int64_t group, int64_t d);

// For rows that the host knows. Tiles of `queries`, those with the longest contexts first.
std::vector<AttendTile> attend_tiles_of(const std::vector<BatchRow>& rows, const std::vector<int32_t>& which,
                                        int64_t group, int queries);

// The fitting number of queries in a tile, where a row has `num` that share a key head. The most are 16, or 8 where d is
// above 128: what shared memory has room for.
int attend_queries(int64_t num, int64_t d);

struct Attend {
    const float* q;              // [N, heads, d]
    const void* keys;            // [blocks, kv_heads, kAttendBlock, d] of T
    const void* values;          // the same
    const BatchRow* rows;        // [S] in device memory; a row without tokens is left alone
    const int64_t* block_table;  // [S, most_blocks]
    int64_t most_blocks;         // no context is longer than most_blocks * kAttendBlock
    int64_t heads, kv_heads, d;
    float scale;
    AttendTiles tiles;
    void* out;                // [N, heads, d]
    void* scratch = nullptr;  // attend_scratch_bytes, aligned to 16: pieces are computed side by side; null: one by one
    bool rounds = false;      // out is of T, as the product of attention_out takes it; else float32
};

// Whether the tiles alone leave a GPU idle, so that pieces should be computed side by side.
bool attend_splits(const AttendTiles& tiles, int64_t kv_heads, int64_t most_blocks);
int64_t attend_scratch_bytes(const AttendTiles& tiles, int64_t kv_heads, int64_t d, int64_t most_blocks);

// For each type of the cache. One kernel, or two where there is scratch memory. They allocate nothing, wait for nothing and
// read all that varies from the device: what is in `Attend` can be captured. `overlaps_previous`: see LaunchShape.
cudaError_t attend_float32(const Attend& attend, cudaStream_t stream, bool overlaps_previous);
cudaError_t attend_bfloat16(const Attend& attend, cudaStream_t stream, bool overlaps_previous);
cudaError_t attend_float16(const Attend& attend, cudaStream_t stream, bool overlaps_previous);

}  // namespace demiurgic::cuda
