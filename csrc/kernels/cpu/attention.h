#pragma once

// Paged attention, for decode and prefill alike. Included inside the namespace of an instruction set, after its Vec.
//
// A query walks its context in chunks of 256 positions from the first on. In a chunk: scores, their largest, exponentials,
// their sum and the weighted sum of values, each in the order of positions; then the chunk is merged into what the chunks
// before it gave (Milakov and Gimelshein, 2018). So the bits depend on the query and its context alone: not on the queries
// computed with it, and not on who computes which chunk. Scores of neighbouring positions are the lanes of a vector, sums of
// values those of neighbouring columns; one read of a key or value serves all queries of a tile. Queries and exponentials are
// rounded to Dot::X.

#include "kernels/cpu/cached.h"
#include "kernels/cpu/rows.h"

constexpr int64_t kTileQueries = 32;  // most queries (token and query head) of a tile

template <int n>
struct Constant {
    static constexpr int value = n;
};

// Queries that share a key head: `num` of them, q [num, d] scaled, each with the positions it may look at.
struct QueryTile {
    const Attend* args;
    const int64_t* blocks;  // of the sequence
    int64_t kv_head;
    int64_t num;
    void* q;          // [num, d] of Dot::X
    int64_t* limits;  // [num] positions
    float* scores;    // [num, kChunk]; then, at the beginning of each row, exponentials of Dot::X
    float* largest;   // [num]
    float* total;     // [num]
    float* sums;      // [num, d]
    void* copies;     // [2, kChunk / kStep, d] of Cached::Copy: keys and values of a chunk
};

// The blocks of a sequence's chunk, and which of their heads.
struct Chunk {
    const int64_t* blocks;
    int64_t num;  // 0: the sequence does not reach so far
    int64_t kv_head;
};

// Chunk `index` of a sequence that has `positions` and these blocks.
inline Chunk chunk_of(const int64_t* blocks, int64_t kv_head, int64_t index, int64_t positions) {
    const int64_t left = larger(0, smaller(kChunk, positions - index * kChunk));
    return {blocks + index * (kChunk / kBlock), (left + kBlock - 1) / kBlock, kv_head};
}

// Where a chunk's blocks of keys [d, 16] or values [16, d] begin; and that many others that are wanted next, which are
// fetched line by line while these are read (nullptr: none). Fetched all at once, they would be waited for.
template <class E>
struct Blocks {
    const E* at[kChunk / kBlock];
    const E* const* next = nullptr;
};

template <class T>
inline Blocks<T> blocks_of(const Attend& a, const void* cache, const Chunk& chunk) {
    Blocks<T> blocks;
    for (int64_t i = 0; i < chunk.num; ++i) {
        blocks.at[i] = static_cast<const T*>(cache) + (chunk.blocks[i] * a.kv_heads + chunk.kv_head) * a.d * kBlock;
    }
    return blocks;
}

// Of so many vectors of E, one after the other, the first begins a cache line.
template <class E>
constexpr int64_t kVectorsOfLine = Vec::N * sizeof(E) < 64 ? 64 / (Vec::N * sizeof(E)) : 1;

// Copies of so many blocks, in `to`; copy(block, to) makes one.
template <class T, class F>
inline Blocks<typename Cached<T>::Copy> copied(const Blocks<T>& blocks, int64_t num, int64_t block_size, void* to,
                                               F copy) {
    using Copy = typename Cached<T>::Copy;
    Blocks<Copy> copies;
    for (int64_t i = 0; i < num; ++i) {
        copies.at[i] = static_cast<Copy*>(to) + i * block_size;
        copy(blocks.at[i], static_cast<Copy*>(to) + i * block_size);
    }
    return copies;
}

// What one lane takes of a query or of exponentials.
template <class X>
inline LaneBits lane_bits(const X* p) {
    LaneBits bits;
    __builtin_memcpy(&bits, p, sizeof bits);
    return bits;
}

template <class X>
inline const X* exponentials_of(const QueryTile& tile, int64_t query) {
    return reinterpret_cast<const X*>(tile.scores + query * kChunk);
}

// Scores of R queries with `num` vectors of positions from `first_vector` of the chunk on.
template <class E, int R, int num, bool fetches>
inline void score(const QueryTile& tile, const Blocks<E>& blocks, int64_t query, int64_t first_vector) {
    using C = Cached<E>;
    using D = typename C::D;
    constexpr int64_t per_block = kBlock / Vec::N;
    const int64_t d = tile.args->d;
    const E *keys[num], *next[num];
    for (int i = 0; i < num; ++i) {
        const int64_t block = (first_vector + i) / per_block, part = (first_vector + i) % per_block;
        keys[i] = blocks.at[block] + part * Vec::N;
        if (fetches) next[i] = blocks.next[block] + part * d * Vec::N;
    }
    const auto* q = static_cast<const typename D::X*>(tile.q) + query * d;
    Vec lanes[R * num];
    for (int i = 0; i < R * num; ++i) lanes[i] = zero();
    for (int64_t k = 0; k < d; k += C::kStep) {
        typename D::Operand key[num];
        for (int i = 0; i < num; ++i) key[i] = C::keys(keys[i], k);
        if (fetches && k % kVectorsOfLine<E> == 0) {
            for (int i = 0; i < num; ++i) __builtin_prefetch(next[i] + k * Vec::N, 0, 2);
        }
        for (int r = 0; r < R; ++r) {
            const typename D::Operand x = D::spread_x(lane_bits(q + r * d + k));
            for (int i = 0; i < num; ++i) lanes[r * num + i] = D::dot(x, key[i], lanes[r * num + i]);
        }
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < num; ++i) {
            store(tile.scores + (query + r) * kChunk + (first_vector + i) * Vec::N, lanes[r * num + i]);
        }
    }
}

template <class E, int R>
inline void score_queries(const QueryTile& tile, const Blocks<E>& blocks, int64_t query, int64_t vectors) {
    int64_t done = 0;
    const auto vectors_at_once = [&](auto width) {
        constexpr int num = decltype(width)::value;
        for (; done + num <= vectors; done += num) {
            if (query == 0 && blocks.next) {
                score<E, R, num, true>(tile, blocks, query, done);
            } else {
                score<E, R, num, false>(tile, blocks, query, done);
            }
        }
    };
    constexpr int most = kLanesInFlight / R;
    vectors_at_once(Constant<most>{});
    if constexpr (most > 8) vectors_at_once(Constant<8>{});
    if constexpr (most > 4) vectors_at_once(Constant<4>{});
    if constexpr (most > 2) vectors_at_once(Constant<2>{});
    vectors_at_once(Constant<1>{});
}

// The scores [n] of one query become exponentials, and zeros up to a whole vector; the largest score and the sum of
// exponentials as they are rounded.
template <class D>
inline void softmax(float* scores, int64_t n, float& largest_score, float& total) {
    constexpr float lowest = -__builtin_inff();
    const int64_t whole = n / Vec::N * Vec::N, rest = n - whole;
    Vec most = broadcast(lowest);
    for (int64_t i = 0; i < whole; i += Vec::N) most = max(most, load(scores + i));
    if (rest > 0) most = max(most, where_first(rest, load(scores + whole), broadcast(lowest)));
    largest_score = largest(most);
    const Vec shift = broadcast(largest_score);
    auto* rounded = reinterpret_cast<typename D::X*>(scores);  // no wider: written behind what is read
    Vec totals = zero();
    const auto put = [&](int64_t i, Vec p) {
        D::round_lanes(p, rounded + i);
        totals = totals + load(rounded + i);
    };
    for (int64_t i = 0; i < whole; i += Vec::N) put(i, exponential(load(scores + i) - shift));
    if (rest > 0) put(whole, keep_first(exponential(load(scores + whole) - shift), rest));
    total = sum(totals);
}

// sums [R, num vectors] += exponentials x values, over positions [begin, end) of the chunk; begin is a multiple of kStep.
template <class E, int R, int num, bool fetches>
inline void weigh(const QueryTile& tile, const Blocks<E>& blocks, int64_t query, int64_t column, int64_t begin,
                  int64_t end) {
    using C = Cached<E>;
    using D = typename C::D;
    const int64_t d = tile.args->d;
    Vec lanes[R * num];
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < num; ++i) lanes[r * num + i] = load(tile.sums + (query + r) * d + column + i * Vec::N);
    }
    const auto add = [&](int64_t position, const typename D::Operand* value) {
        for (int r = 0; r < R; ++r) {
            const auto* p = exponentials_of<typename D::X>(tile, query + r) + position;
            const typename D::Operand x = D::spread_x(lane_bits(p));
            for (int i = 0; i < num; ++i) lanes[r * num + i] = D::dot(x, value[i], lanes[r * num + i]);
        }
    };
    for (int64_t position = begin; position < end;) {
        const E* values = blocks.at[position / kBlock] + column;
        const E* next = fetches ? blocks.next[position / kBlock] + column : nullptr;
        const int64_t block_end = smaller(end, (position / kBlock + 1) * kBlock);
        typename D::Operand value[num];
        for (; position + C::kStep <= block_end; position += C::kStep) {
            for (int i = 0; i < num; ++i) {
                value[i] = C::values(values + i * Vec::N, position % kBlock, d, Vec::N);
                for (int step = 0; step < C::kStep && fetches && i % kVectorsOfLine<E> == 0; ++step) {
                    __builtin_prefetch(next + (position % kBlock + step) * d + i * Vec::N, 0, 2);
                }
            }
            add(position, value);
        }
        if (position == block_end) continue;
        for (int i = 0; i < num; ++i) {
            value[i] = C::last_values(values + i * Vec::N, position % kBlock, d, Vec::N);
        }
        add(position, value);
        position = block_end;
    }
    for (int r = 0; r < R; ++r) {
        for (int i = 0; i < num; ++i) store(tile.sums + (query + r) * d + column + i * Vec::N, lanes[r * num + i]);
    }
}

// The same for a head dimension's last columns, fewer than a vector, and one query.
template <class E>
inline void weigh_rest(const QueryTile& tile, const Blocks<E>& blocks, int64_t query, int64_t column, int64_t end) {
    using C = Cached<E>;
    using D = typename C::D;
    const int64_t d = tile.args->d, count = d - column;
    float* sums = tile.sums + query * d + column;
    const auto* p = exponentials_of<typename D::X>(tile, query);
    Vec lanes = load_first(sums, count);
    for (int64_t position = 0; position < end; position += C::kStep) {
        const E* values = blocks.at[position / kBlock] + column;
        const typename D::Operand value = position + C::kStep <= end
                                              ? C::values(values, position % kBlock, d, count)
                                              : C::last_values(values, position % kBlock, d, count);
        lanes = D::dot(D::spread_x(lane_bits(p + position)), value, lanes);
    }
    store_some(sums, lanes, count);
}

// R queries, the first of which looks at the fewest positions: together as far as all look, then each for itself.
template <class E, int R>
inline void weigh_queries(const QueryTile& tile, const Blocks<E>& blocks, int64_t chunk, int64_t query) {
    constexpr int num = kLanesInFlight / R > 4 ? 4 : kLanesInFlight / R;
    const int64_t d = tile.args->d, whole = d / Vec::N * Vec::N;
    const auto positions = [&](int64_t i) { return smaller(kChunk, larger(0, tile.limits[i] - chunk * kChunk)); };
    int64_t together = kChunk;
    for (int64_t r = 0; r < R; ++r) together = smaller(together, positions(query + r));
    together = together / Cached<E>::kStep * Cached<E>::kStep;
    int64_t column = 0;
    const auto columns = [&](auto width) {
        constexpr int n = decltype(width)::value;
        for (; column + n * Vec::N <= whole; column += n * Vec::N) {
            if (query == 0 && blocks.next) {
                weigh<E, R, n, true>(tile, blocks, query, column, 0, together);
            } else {
                weigh<E, R, n, false>(tile, blocks, query, column, 0, together);
            }
            for (int64_t r = 0; r < R; ++r) {
                if (positions(query + r) > together) {
                    weigh<E, 1, n, false>(tile, blocks, query + r, column, together, positions(query + r));
                }
            }
        }
    };
    columns(Constant<num>{});
    if constexpr (num > 2) columns(Constant<2>{});
    columns(Constant<1>{});
    if (whole < d) {
        for (int64_t r = 0; r < R; ++r) weigh_rest<E>(tile, blocks, query + r, whole, positions(query + r));
    }
}

// Runs f(Constant<R>, first query) over all queries of the tile.
template <class F>
inline void by_groups(int64_t num, F f) {
    int64_t query = 0;
    for (; query + 4 <= num; query += 4) f(Constant<4>{}, query);
    if (num - query == 3) return f(Constant<3>{}, query);
    if (num - query == 2) return f(Constant<2>{}, query);
    if (num - query == 1) return f(Constant<1>{}, query);
}

// largest, total and sums of one chunk alone, for queries that look at it; `positions`: most that one looks at.
template <class E>
inline void attend_blocks(const QueryTile& tile, const Blocks<E>& keys, const Blocks<E>& values, int64_t chunk,
                          int64_t positions) {
    const int64_t vectors = (positions + Vec::N - 1) / Vec::N;
    by_groups(tile.num,
              [&](auto r, int64_t query) { score_queries<E, decltype(r)::value>(tile, keys, query, vectors); });
    for (int64_t i = 0; i < tile.num; ++i) {
        const int64_t n = smaller(kChunk, tile.limits[i] - chunk * kChunk);
        if (n > 0) softmax<typename Cached<E>::D>(tile.scores + i * kChunk, n, tile.largest[i], tile.total[i]);
    }
    __builtin_memset(tile.sums, 0, tile.num * tile.args->d * sizeof(float));
    by_groups(tile.num,
              [&](auto r, int64_t query) { weigh_queries<E, decltype(r)::value>(tile, values, chunk, query); });
}

// `after`: the chunk that whoever computes this one comes to next.
template <class T>
inline void attend_chunk(const QueryTile& tile, int64_t index, const Chunk& after) {
    const Attend& a = *tile.args;
    const int64_t context = tile.limits[tile.num - 1];  // the last looks at most
    const int64_t positions = smaller(kChunk, context - index * kChunk);
    const Chunk chunk = chunk_of(tile.blocks, tile.kv_head, index, context);
    Blocks<T> keys = blocks_of<T>(a, a.keys, chunk), values = blocks_of<T>(a, a.values, chunk);
    if (sizeof(T) < sizeof(float) && tile.num > 8) {
        using C = Cached<T>;
        const int64_t block_size = a.d * kBlock / C::kStep;
        void* to = static_cast<typename C::Copy*>(tile.copies) + kChunk / kBlock * block_size;
        const auto key = [&](const T* block, typename C::Copy* at) { C::copy_keys(block, a.d, at); };
        const auto value = [&](const T* block, typename C::Copy* at) { C::copy_values(block, a.d, at); };
        return attend_blocks(tile, copied(keys, chunk.num, block_size, tile.copies, key),
                             copied(values, chunk.num, block_size, to, value), index, positions);
    }
    // Few queries wait for memory: the values come while the keys are multiplied, the next keys while values are.
    keys.next = values.at;
    Blocks<T> next = keys;  // where fewer blocks come after, those at hand are asked for again, at no cost
    if (after.num > 0) {
        const Chunk known{after.blocks, smaller(after.num, chunk.num), after.kv_head};
        const Blocks<T> begin = blocks_of<T>(a, a.keys, known);
        for (int64_t i = 0; i < known.num; ++i) next.at[i] = begin.at[i];
        values.next = next.at;
    }
    attend_blocks(tile, keys, values, index, positions);
}

// What the chunks before gave, of one query.
struct Merged {
    float largest = 0, total = 0;
    float* sums = nullptr;  // [d]
};

inline void merge(Merged& into, float largest_score, float total, const float* sums, int64_t d, bool is_first) {
    if (is_first) {
        into.largest = largest_score;
        into.total = total;
        __builtin_memcpy(into.sums, sums, d * sizeof(float));
        return;
    }
    const float most = into.largest > largest_score ? into.largest : largest_score;
    const float old_scale = exponential(into.largest - most), scale = exponential(largest_score - most);
    into.largest = most;
    into.total = into.total * old_scale + total * scale;
    for_lanes(d, [&](int64_t i, int64_t count) {
        const Vec old = load_some(into.sums + i, count) * broadcast(old_scale);
        store_some(into.sums + i, old + load_some(sums + i, count) * broadcast(scale), count);
    });
}

inline void finish(const Merged& merged, int64_t d, float* out) {
    const Vec total = broadcast(merged.total);
    for_lanes(d,
              [&](int64_t i, int64_t count) { store_some(out + i, load_some(merged.sums + i, count) / total, count); });
}
