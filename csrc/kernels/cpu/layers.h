#pragma once

// The decoder's entries, for weights of type T. Included inside the namespace of an instruction set, after attention.h.
// Every member of the team runs them; each phase ends in the team's barrier.

#include "kernels/cpu/attention.h"
#include "kernels/cpu/sampling.h"

// Few rows are normed and packed by each member for itself: cheaper than a barrier.
constexpr int64_t kOwnRows = 8;

// Pieces of scratch, one after the other, on cache lines.
struct Pieces {
    char* next;

    template <class P>
    P* take(int64_t count) {
        P* piece = reinterpret_cast<P*>(next);
        next += round_up(count * static_cast<int64_t>(sizeof(P)), 64);
        return piece;
    }
};

template <class F>
inline void for_units(const Member& member, int64_t num, F f) {
    Team& team = *member.team;
    for (int64_t unit = team.take(member.index, num); unit < num; unit = team.take(member.index, num)) f(unit);
    team.barrier(member.index);
}

template <class T>
struct Layers {
    // Bytes of scratch: see the Pieces of the entries.
    static Scratch scratch(const StepShape& s, int num_threads) {
        const int64_t operand = round_up(Product<T>::operand_bytes(s.num_tokens, s.widest), 64);
        const int64_t own_operand = round_up(Product<T>::operand_bytes(kOwnRows, s.widest), 64);
        const int64_t chunks = (s.context_length + kChunk - 1) / kChunk;
        const int64_t partials = 2 * num_threads * chunks * kTileQueries * (s.head_dim + 2) * 4 + 64;
        const int64_t block = kMostRows * larger(kMostUnitRows, s.head_dim) * 4;
        const int64_t products = 2 * block + round_up(Product<T>::scratch_bytes(s.widest), 64) +
                                 round_up(4 * Product<T>::kPackRows * s.widest, 64);
        const int64_t attention = (kTileQueries * (kChunk + 3 * s.head_dim + 16) + 2 * kChunk * s.head_dim) * 4 + 1024;
        return {larger(2 * operand, partials) + 64, own_operand + larger(products, attention) + 64};
    }

    static void embed(const Member& member, const Embed& a) {
        const int64_t width = a.table.columns;
        for_units(member, (a.num_tokens + 15) / 16, [&](int64_t unit) {
            for (int64_t i = unit * 16; i < smaller(a.num_tokens, unit * 16 + 16); ++i) {
                const T* row = static_cast<const T*>(a.table.weight) + a.tokens[i] * a.table.stride;
                for_lanes(width, [&](int64_t k, int64_t count) {
                    store_some(a.out + i * width + k, load_some(row + k, count), count);
                });
            }
        });
    }

    static void attention_in(const Member& member, const AttentionIn& a) {
        const int64_t width = a.q.columns, num_rows = (a.heads + 2 * a.kv_heads) * a.d;
        const Products work(member, a.num_tokens, width, larger(kMostUnitRows, a.d));
        work.pack_normed(a.norm, [&](int64_t i) { return a.x + i * width; });
        // A unit is whole heads, one at least: each is rotated as one.
        const int64_t unit_heads = larger(1, work.unit_rows(num_rows).most / a.d);
        const Units units(num_rows, {unit_heads * a.d, a.d}, member.team->size());
        work.for_blocks(units.count, [&](int64_t unit, int64_t next, int64_t first, int64_t m) {
            for (int64_t row = units.begin(unit), end = units.begin(unit + 1); row < end;) {
                const MatrixRows rows = rows_of_qkv(a, row, end);
                row += rows.num;
                const MatrixRows after =
                    row < end ? rows_of_qkv(a, row, end) : rows_of_qkv(a, units.begin(next), units.begin(next + 1));
                work.product(rows, after, first, m, work.c);
                for (int64_t j = 0; j < rows.num; j += a.d)
                    put_head(a, rows.from(j, a.d), first, m, work.c + j, rows.num);
            }
        });
    }

    static void attend(const Member& member, const Attend& a) {
        const int64_t group = a.heads / a.kv_heads, tile_heads = smaller(group, kTileQueries);
        const int64_t head_tiles = (group + tile_heads - 1) / tile_heads;
        const int64_t tile_tokens = larger(1, kTileQueries / tile_heads);
        int64_t num_tiles = 0, most_chunks = 0;
        for (int64_t i = 0; i < a.num_rows; ++i) {
            num_tiles += (a.rows[i].num_tokens + tile_tokens - 1) / tile_tokens * a.kv_heads * head_tiles;
            most_chunks = larger(most_chunks, (a.rows[i].context_length + kChunk - 1) / kChunk);
        }
        const AttendWork work(member, a, tile_heads, head_tiles, tile_tokens);
        if (num_tiles >= 2 * member.team->size() || most_chunks == 1) {
            // Several tiles a unit, so that a member knows which keys it needs next.
            typename AttendWork::Cursor cursor;
            const int64_t run = larger(1, smaller(4, num_tiles / (4 * member.team->size())));
            for_units(member, (num_tiles + run - 1) / run,
                      [&](int64_t unit) { work.several(cursor, unit * run, smaller(num_tiles, (unit + 1) * run)); });
            return;
        }
        // Fewer tiles than members: they share the chunks of a tile, and one merges them.
        for_units(member, num_tiles * most_chunks, [&](int64_t unit) {
            typename AttendWork::Cursor cursor;
            work.partial(cursor.at(work, unit / most_chunks), unit / most_chunks, unit % most_chunks, most_chunks);
        });
        for_units(member, num_tiles, [&](int64_t unit) {
            typename AttendWork::Cursor cursor;
            work.join(cursor.at(work, unit), unit, most_chunks);
        });
    }

    static void attention_out(const Member& member, const AttentionOut& a) {
        const Products work(member, a.num_tokens, a.out.columns);
        work.by_packs([&](int64_t first, int64_t m) { work.pack(first, m, a.attended + first * a.out.columns); });
        work.add_product(a.out, a.x);
    }

    static void mlp(const Member& member, const Mlp& a) {
        const int64_t hidden = a.up.columns, inner = a.up.rows;
        const Products work(member, a.num_tokens, hidden);
        work.pack_normed(a.norm, [&](int64_t i) { return a.x + i * hidden; });
        const Products down = work.after(inner);
        work.for_units_of(a.up, [&](const MatrixRows& up_rows, const MatrixRows& next, int64_t first, int64_t m) {
            const int64_t row = up_rows.first, n = up_rows.num;
            const MatrixRows gate_rows{&a.gate, row, n};
            float *up = work.c, *gate = work.c + kMostRows * kMostUnitRows;
            work.product(up_rows, a.gate.weight ? gate_rows : next, first, m, up);
            if (a.gate.weight) work.product(gate_rows, next, first, m, gate);
            for (int64_t i = 0; i < m; ++i) {
                float* y = up + i * n;
                add_bias<T>(up_rows, y);
                if (a.gate.weight) {
                    add_bias<T>(gate_rows, gate + i * n);
                    activate(a.activation, gate + i * n, n);
                    multiply(y, gate + i * n, n);
                } else {
                    activate(a.activation, y, n);
                }
            }
            Product<T>::pack(down.operand, a.num_tokens, first, m, inner, row, up, n, n);
        });
        down.add_product(a.down, a.x);
    }

    static void head(const Member& member, const Head& a) {
        const int64_t hidden = a.head.columns, vocab = a.head.rows;
        const Products work(member, a.num_rows, hidden);
        work.pack_normed(a.norm, [&](int64_t i) { return a.x + i * hidden; });
        work.for_units_of(a.head, [&](const MatrixRows& rows, const MatrixRows& next, int64_t first, int64_t m) {
            float* logits = a.logits + first * vocab + rows.first;
            work.product(rows, next, first, m, logits, vocab);
            for (int64_t i = 0; i < m; ++i) add_bias<T>(rows, logits + i * vocab);
        });
    }

private:
    // Rows of W in units of work of about one size, as many for each member.
    struct Units {
        Units(int64_t num_rows, const UnitRows& unit, int64_t team_size)
            : rows(num_rows),
              step(unit.step),
              steps((rows + step - 1) / step),
              count(smaller(steps, round_up((rows + unit.most - 1) / unit.most, team_size))) {}
        int64_t begin(int64_t unit) const { return smaller(rows, unit * steps / count * step); }

        int64_t rows, step, steps, count;
    };

    // A phase of products: x as an operand, and the units of the product.
    struct Products {
        Products(const Member& m, int64_t num_rows, int64_t num_columns, int64_t unit_rows = kMostUnitRows)
            : member(m), rows(num_rows), columns(num_columns) {
            Pieces own{m.own}, shared{m.shared};
            operand = own.template take<char>(Product<T>::operand_bytes(kOwnRows, columns));
            if (rows > kOwnRows) operand = shared.template take<char>(Product<T>::operand_bytes(rows, columns));
            c = own.template take<float>(2 * kMostRows * unit_rows);
            normed = own.template take<float>(Product<T>::kPackRows * columns);
            scratch = own.next;  // the rest: what comes after may have more columns
            after_operand = shared.next;
        }

        // The same rows as an operand of other columns behind this one, written by all members.
        Products after(int64_t num_columns) const {
            Products next = *this;
            next.columns = num_columns;
            next.operand = after_operand;
            return next;
        }

        void pack(int64_t first, int64_t m, const float* values) const {
            Product<T>::pack(operand, rows, first, m, columns, 0, values, columns, columns);
        }

        // f(first, m) over all rows: by each member for itself where they are few, else shared.
        template <class F>
        void by_packs(F f) const {
            if (rows <= kOwnRows) return f(0, rows);
            constexpr int64_t pack_rows = Product<T>::kPackRows;
            for_units(member, (rows + pack_rows - 1) / pack_rows,
                      [&](int64_t unit) { f(unit * pack_rows, smaller(pack_rows, rows - unit * pack_rows)); });
        }

        // Packs the norm of all rows; x(i): where row i is.
        template <class F>
        void pack_normed(const Norm& norm, F x) const {
            by_packs([&](int64_t first, int64_t m) {
                for (int64_t i = 0; i < m; ++i) rms_norm<T>(x(first + i), norm, columns, normed + i * columns);
                pack(first, m, normed);
            });
        }

        // f(unit, the unit likely to come next, first row of x, number of rows): blocks of rows outside, so that all members
        // are at the same one.
        template <class F>
        void for_blocks(int64_t num_units, F f) const {
            const int64_t block = Product<T>::row_block(rows, columns);
            const int64_t blocks = (rows + block - 1) / block;
            for_units(member, blocks * num_units, [&](int64_t unit) {
                const int64_t first = unit / num_units * block;
                const int64_t next = (unit + member.team->size()) % num_units;
                f(unit % num_units, next, first, smaller(block, rows - first));
            });
        }

        UnitRows unit_rows(int64_t rows_of_w) const {
            return Product<T>::unit_rows(rows, rows_of_w, columns, member.team->size());
        }

        // The same over W's rows: f(rows of W, those likely to come next, first row of x, number of rows).
        template <class F>
        void for_units_of(const Matrix& w, F f) const {
            const Units units(w.rows, unit_rows(w.rows), member.team->size());
            const auto rows_of = [&](int64_t unit) -> MatrixRows {
                return {&w, units.begin(unit), units.begin(unit + 1) - units.begin(unit)};
            };
            for_blocks(units.count, [&](int64_t unit, int64_t next, int64_t first, int64_t m) {
                f(rows_of(unit), rows_of(next), first, m);
            });
        }

        // out [m, w.num], rows `ld` apart: rows of W by rows [first, first + m) of x
        void product(const MatrixRows& w, const MatrixRows& next, int64_t first, int64_t m, float* out,
                     int64_t ld) const {
            Product<T>::run(w, next, operand, rows, first, m, out, ld, scratch, member.weights_in_cache);
        }
        void product(const MatrixRows& w, const MatrixRows& next, int64_t first, int64_t m, float* out) const {
            product(w, next, first, m, out, w.num);
        }

        // x [rows, w.rows] += the product and its bias
        void add_product(const Matrix& w, float* x) const {
            for_units_of(w, [&](const MatrixRows& of_w, const MatrixRows& next, int64_t first, int64_t m) {
                product(of_w, next, first, m, c);
                for (int64_t i = 0; i < m; ++i) {
                    float* row = x + (first + i) * w.rows + of_w.first;
                    // Rows of x lie a page apart, where no prefetcher follows: four rows earlier they come in time.
                    for (int64_t j = 0; j < of_w.num && i + 4 < m; j += 16)
                        __builtin_prefetch(row + 4 * w.rows + j, 1, 2);
                    add_bias<T>(of_w, c + i * of_w.num);
                    add(row, c + i * of_w.num, of_w.num);
                }
            });
        }

        const Member& member;
        int64_t rows, columns;
        char* operand;
        float* c;  // [2, kMostRows, most rows of a unit]
        char* scratch;
        float* normed;  // [rows packed at a time, columns]
        char* after_operand;
    };

    // Rows [row, end) of q, k and v, as if one lay behind the other: those of them that are in one matrix with the first.
    static MatrixRows rows_of_qkv(const AttentionIn& a, int64_t row, int64_t end) {
        const Matrix* matrix = &a.q;
        int64_t before = 0;
        for (const Matrix* next : {&a.k, &a.v}) {
            if (row < before + matrix->rows) break;
            before += matrix->rows;
            matrix = next;
        }
        return {matrix, row - before, smaller(end, before + matrix->rows) - row};
    }

    // What rows of W, those of a head, made of tokens [first, first + m), y [m, d], rows `stride` apart: rotated, to q or to
    // their slots in the cache.
    static void put_head(const AttentionIn& a, const MatrixRows& rows, int64_t first, int64_t m, float* y,
                         int64_t stride) {
        const int64_t head = rows.first / a.d;
        for (int64_t i = 0; i < m; ++i) {
            const int64_t token = first + i;
            float* of_token = y + i * stride;  // [d]
            add_bias<T>(rows, of_token);
            if (rows.matrix == &a.v) {
                T* values = block_of(a, a.values, head, a.slots[token]) + a.slots[token] % kBlock * a.d;
                convert(of_token, values, a.d);
                continue;
            }
            rotate(of_token, a.cos + token * (a.d / 2), a.sin + token * (a.d / 2), a.d);
            if (rows.matrix == &a.q)
                __builtin_memcpy(a.q_out + (token * a.heads + head) * a.d, of_token, a.d * sizeof(float));
        }
        if (rows.matrix == &a.k) append_keys(a, head, a.slots + first, m, y, stride);
    }

    // y [m, d], rows `stride` apart, to slots [m] of the cache.
    static void append_keys(const AttentionIn& a, int64_t head, const int64_t* slots, int64_t m, const float* y,
                            int64_t stride) {
        for (int64_t i = 0; i < m;) {
            T* keys = block_of(a, a.keys, head, slots[i]) + slots[i] % kBlock;
            if (m - i >= kBlock && are_block(slots + i) && a.d % Vec::N == 0) {
                put_block_of_keys(y + i * stride, stride, a.d, keys);
                i += kBlock;
            } else {
                put_key(y + i * stride, a.d, keys);
                ++i;
            }
        }
    }

    // The block of keys or values of a head that a slot is in.
    static T* block_of(const AttentionIn& a, void* cache, int64_t head, int64_t slot) {
        return static_cast<T*>(cache) + (slot / kBlock * a.kv_heads + head) * a.d * kBlock;
    }

    struct AttendWork {
        using X = typename Dot<T>::X;

        // Where a tile is: its row, head and first token.
        struct Place {
            int64_t row, kv_head, head_tile, first_token;
        };

        // Units are numbered row by row; a member's own units come in ascending order.
        struct Cursor {
            int64_t row = 0, before = 0;  // units of the rows before

            Place at(const AttendWork& work, int64_t unit) {
                if (unit < before) row = before = 0;
                while (unit >= before + work.tiles_of(row)) before += work.tiles_of(row++);
                const int64_t heads = work.a.kv_heads * work.head_tiles, index = unit - before;
                const int64_t head = index % heads;
                return {row, head / work.head_tiles, head % work.head_tiles, index / heads * work.tile_tokens};
            }
        };

        AttendWork(const Member& m, const Attend& args, int64_t heads, int64_t num_head_tiles, int64_t tokens)
            : a(args), tile_heads(heads), head_tiles(num_head_tiles), tile_tokens(tokens) {
            Pieces own{m.own};
            q = own.template take<X>(kTileQueries * a.d);
            scores = own.template take<float>(kTileQueries * kChunk);
            sums = own.template take<float>(kTileQueries * a.d);
            merged_sums = own.template take<float>(kTileQueries * a.d);
            copies = own.template take<float>(2 * kChunk * a.d);
            partials = reinterpret_cast<float*>(m.shared);
        }

        int64_t tiles_of(int64_t row) const {
            return (a.rows[row].num_tokens + tile_tokens - 1) / tile_tokens * a.kv_heads * head_tiles;
        }

        // The queries of a place: token by token, so that later ones look at more.
        struct Filled {
            QueryTile tile;
            int64_t limits[kTileQueries];
            float largest[kTileQueries], total[kTileQueries];
            float* out[kTileQueries];
        };
        void fill(const Place& place, Filled& filled) const {
            const int64_t group = a.heads / a.kv_heads, first_head = place.head_tile * tile_heads;
            const int64_t heads = smaller(tile_heads, group - first_head);
            const BatchRow& row = a.rows[place.row];
            const int64_t tokens = smaller(tile_tokens, row.num_tokens - place.first_token);
            filled.tile = {&a,     blocks_of_row(place.row), place.kv_head, tokens * heads, q,     filled.limits,
                           scores, filled.largest,           filled.total,  sums,           copies};
            for (int64_t i = 0; i < tokens * heads; ++i) {
                const int64_t token = place.first_token + i / heads;
                const int64_t head = place.kv_head * group + first_head + i % heads;
                const int64_t at = ((row.first + token) * a.heads + head) * a.d;
                filled.limits[i] = row.context_length - row.num_tokens + token + 1;
                filled.out[i] = a.out + at;
                for_lanes(a.d, [&](int64_t k, int64_t count) {
                    float scaled[Vec::N];
                    store(scaled, load_some(a.q + at + k, count) * broadcast(a.scale));
                    convert(scaled, q + i * a.d + k, count);
                });
            }
        }

        // Tiles [begin, end), one after the other.
        void several(Cursor& cursor, int64_t begin, int64_t end) const {
            Place place = cursor.at(*this, begin);
            for (int64_t tile = begin + 1; tile < end; ++tile) {
                const Place next = cursor.at(*this, tile);
                whole(place, chunk_of(blocks_of_row(next.row), next.kv_head, 0, a.rows[next.row].context_length));
                place = next;
            }
            whole(place, {});
        }

        const int64_t* blocks_of_row(int64_t row) const { return a.block_table + row * a.most_blocks; }

        // `after`: the first chunk of the tile that comes next.
        void whole(const Place& place, const Chunk& after) const {
            Filled filled;
            fill(place, filled);
            const QueryTile& tile = filled.tile;
            Merged merged[kTileQueries];
            for (int64_t i = 0; i < tile.num; ++i) merged[i].sums = merged_sums + i * a.d;
            const int64_t context = tile.limits[tile.num - 1];
            for (int64_t chunk = 0; chunk * kChunk < context; ++chunk) {
                const Chunk next = chunk_of(tile.blocks, tile.kv_head, chunk + 1, context);
                attend_chunk<T>(tile, chunk, next.num > 0 ? next : after);
                for (int64_t i = 0; i < tile.num; ++i) {
                    if (chunk * kChunk >= tile.limits[i]) continue;
                    merge(merged[i], tile.largest[i], tile.total[i], tile.sums + i * a.d, a.d, chunk == 0);
                }
            }
            for (int64_t i = 0; i < tile.num; ++i) finish(merged[i], a.d, filled.out[i]);
        }

        // One chunk's result of each query: largest, total, sums [d].
        float* partial_of(int64_t unit, int64_t chunk, int64_t chunks, int64_t query) const {
            return partials + ((unit * chunks + chunk) * kTileQueries + query) * (a.d + 2);
        }

        void partial(const Place& place, int64_t unit, int64_t chunk, int64_t chunks) const {
            Filled filled;
            fill(place, filled);
            const QueryTile& tile = filled.tile;
            if (chunk * kChunk >= tile.limits[tile.num - 1]) return;
            attend_chunk<T>(tile, chunk, {});
            for (int64_t i = 0; i < tile.num; ++i) {
                float* to = partial_of(unit, chunk, chunks, i);
                to[0] = tile.largest[i];
                to[1] = tile.total[i];
                __builtin_memcpy(to + 2, tile.sums + i * a.d, a.d * sizeof(float));
            }
        }

        void join(const Place& place, int64_t unit, int64_t chunks) const {
            Filled filled;
            fill(place, filled);
            for (int64_t i = 0; i < filled.tile.num; ++i) {
                Merged merged;
                merged.sums = merged_sums;
                for (int64_t chunk = 0; chunk * kChunk < filled.limits[i]; ++chunk) {
                    const float* from = partial_of(unit, chunk, chunks, i);
                    merge(merged, from[0], from[1], from + 2, a.d, chunk == 0);
                }
                finish(merged, a.d, filled.out[i]);
            }
        }

        const Attend& a;
        int64_t tile_heads, head_tiles, tile_tokens;
        X* q;
        float *scores, *sums, *merged_sums, *copies, *partials;
    };
};

template <class T>
constexpr Entries entries() noexcept {
    using L = Layers<T>;
    return {L::scratch, L::embed, L::attention_in, L::attend,  L::attention_out,
            L::mlp,     L::head,  sample_scratch,  sample_row, row_log_probability};
}
