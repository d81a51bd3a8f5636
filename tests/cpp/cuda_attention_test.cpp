// CUDA's attention, run on the host: against a plain one in double, and against itself, bit for bit, however the work is cut.

#include "kernels/cuda/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>

#include "check.h"
#include "numbers.h"
#include "simt.h"

namespace demiurgic::test {

namespace {

constexpr int64_t kBlock = cuda::kAttendBlock;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Shape {
    Type type;
    int64_t heads, kv_heads, d;

    int64_t group() const { return heads / kv_heads; }
    float scale() const { return static_cast<float>(1 / std::sqrt(static_cast<double>(d))); }
    std::string text() const {
        return std::string(name_of(type)) + ", " + std::to_string(heads) + "/" + std::to_string(kv_heads) +
               " heads of " + std::to_string(d);
    }
};

struct Sequence {
    int64_t length;
    std::vector<float> q;         // [length, heads, d]
    std::vector<int64_t> blocks;  // of the cache
};

// Sequences of these lengths in a cache whose other slots hold NaN.
struct World {
    World(const Shape& s, const std::vector<int64_t>& lengths, uint64_t seed = 3) : shape(s), random(seed) {
        std::vector<int64_t> num_blocks;
        for (const int64_t length : lengths) num_blocks.push_back((length + kBlock - 1) / kBlock);
        const int64_t all = std::accumulate(num_blocks.begin(), num_blocks.end(), int64_t{1});
        keys = values = Values(s.type, all * s.kv_heads * kBlock * s.d);
        for (int64_t i = 0; i < all * s.kv_heads * kBlock * s.d; ++i) keys.set(i, kNan), values.set(i, kNan);
        std::vector<int64_t> free(all);
        std::iota(free.begin(), free.end(), 0);
        for (size_t i = 0; i < lengths.size(); ++i) {
            Sequence sequence{lengths[i], {}, {}};
            for (int64_t k = 0; k < num_blocks[i]; ++k) {
                const int64_t chosen = random.below(static_cast<int64_t>(free.size()));
                sequence.blocks.push_back(free[chosen]);
                free.erase(free.begin() + chosen);
            }
            for (int64_t k = 0; k < lengths[i] * s.heads * s.d; ++k) {
                sequence.q.push_back(static_cast<float>(random.between(-3, 3)));
            }
            sequences.push_back(sequence);
            for (int64_t position = 0; position < lengths[i]; ++position) fill(i, position);
        }
    }

    // Where an element of a sequence's position is in the cache.
    int64_t at(size_t sequence, int64_t position, int64_t kv_head, int64_t k) const {
        const int64_t block = sequences[sequence].blocks[position / kBlock];
        return ((block * shape.kv_heads + kv_head) * kBlock + position % kBlock) * shape.d + k;
    }

    void fill(size_t sequence, int64_t position) {
        for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
            for (int64_t k = 0; k < shape.d; ++k) {
                keys.set(at(sequence, position, kv_head, k), random.between(-2, 2));
                values.set(at(sequence, position, kv_head, k), random.between(-1, 1));
            }
        }
    }

    // The output [d] of one query, in double.
    std::vector<double> oracle(size_t sequence, int64_t position, int64_t head) const {
        const int64_t kv_head = head / shape.group(), d = shape.d;
        std::vector<double> scores, out(d);
        for (int64_t p = 0; p <= position; ++p) {
            double score = 0;
            for (int64_t k = 0; k < d; ++k) {
                const double q = sequences[sequence].q[(position * shape.heads + head) * d + k];
                score += q * keys.at(at(sequence, p, kv_head, k));
            }
            scores.push_back(score / std::sqrt(static_cast<double>(d)));
        }
        const double largest = *std::max_element(scores.begin(), scores.end());
        double total = 0;
        for (double& score : scores) total += score = std::exp(score - largest);
        for (int64_t p = 0; p <= position; ++p) {
            for (int64_t k = 0; k < d; ++k) out[k] += scores[p] / total * values.at(at(sequence, p, kv_head, k));
        }
        return out;
    }

    Shape shape;
    Random random;
    Values keys, values;
    std::vector<Sequence> sequences;
};

// Tokens of one sequence in a step; count 0: a row at rest.
struct Part {
    size_t sequence;
    int64_t start, count;
};

// How the work is cut, which must not show.
struct Cut {
    bool split = false;
    int queries = 0;  // in a tile listed by the host; 0: tiles by the device, for rows of up to most_tokens
    int64_t most_tokens = 0;
    int64_t spare_blocks = 0;  // of the table's rows
    simt::Order order = simt::Order::forward;
    bool rounds = false;  // outputs are of the cache's type
};

// The outputs [N, heads, d] of one step, as numbers of float32.
std::vector<float> attend(const World& world, const std::vector<Part>& parts, const Cut& cut) {
    const Shape& shape = world.shape;
    std::vector<float> q;
    std::vector<BatchRow> rows;
    int64_t most_blocks = 1, num_tokens = 0, most_tokens = 0;
    for (const auto& [sequence, start, count] : parts) {
        const auto begin = world.sequences[sequence].q.begin() + start * shape.heads * shape.d;
        q.insert(q.end(), begin, begin + count * shape.heads * shape.d);
        rows.push_back({num_tokens, count, count == 0 ? 0 : start + count});
        num_tokens += count;
        most_tokens = std::max(most_tokens, count);
        most_blocks = std::max(most_blocks, (start + count + kBlock - 1) / kBlock);
    }
    most_blocks += cut.spare_blocks;
    // What no kernel may follow: behind a row's own blocks, and in rows at rest.
    std::vector<int64_t> table(parts.size() * most_blocks, int64_t{1} << 40);
    std::vector<int32_t> which;
    for (size_t i = 0; i < parts.size(); ++i) {
        if (parts[i].count == 0) continue;
        which.push_back(static_cast<int32_t>(i));
        const std::vector<int64_t>& blocks = world.sequences[parts[i].sequence].blocks;
        const int64_t used = (parts[i].start + parts[i].count + kBlock - 1) / kBlock;
        std::copy(blocks.begin(), blocks.begin() + used, table.begin() + static_cast<int64_t>(i) * most_blocks);
    }

    std::vector<cuda::AttendTile> list;
    cuda::AttendTiles tiles = cuda::attend_tiles(
        static_cast<int64_t>(parts.size()), cut.most_tokens ? cut.most_tokens : most_tokens, shape.group(), shape.d);
    if (cut.queries) {
        list = cuda::attend_tiles_of(rows, which, shape.group(), cut.queries);
        tiles = {cut.queries, static_cast<int64_t>(list.size()), 0, list.data()};
    }
    const int64_t scratch_bytes = cuda::attend_scratch_bytes(tiles, shape.kv_heads, shape.d, most_blocks);
    std::vector<float> scratch(scratch_bytes / sizeof(float), kNan);
    Values out(cut.rounds ? shape.type : Type::float32, static_cast<int64_t>(q.size()));
    for (size_t i = 0; i < q.size(); ++i) out.set(static_cast<int64_t>(i), kNan);
    const cuda::Attend arguments{q.data(),
                                 world.keys.data(),
                                 world.values.data(),
                                 rows.data(),
                                 table.data(),
                                 most_blocks,
                                 shape.heads,
                                 shape.kv_heads,
                                 shape.d,
                                 shape.scale(),
                                 tiles,
                                 out.data(),
                                 cut.split ? scratch.data() : nullptr,
                                 cut.rounds};
    const auto launch = shape.type == Type::float32    ? cuda::attend_float32
                        : shape.type == Type::bfloat16 ? cuda::attend_bfloat16
                                                       : cuda::attend_float16;
    simt::order = cut.order;
    const cudaError_t error = launch(arguments, nullptr, false);
    simt::order = simt::Order::forward;
    check(error == cudaSuccess, "the launch");
    std::vector<float> numbers;
    for (size_t i = 0; i < q.size(); ++i) numbers.push_back(static_cast<float>(out.at(static_cast<int64_t>(i))));
    return numbers;
}

// To the type's nearest.
float rounded(Type type, float x) {
    Values value(type, 1);
    value.set(0, x);
    return static_cast<float>(value.at(0));
}

// The outputs of each sequence's last positions, `most` or all, computed as one prompt.
struct Expected {
    explicit Expected(const World& w, int64_t most = 1 << 20) : world(w) {
        for (size_t i = 0; i < world.sequences.size(); ++i) {
            const int64_t length = world.sequences[i].length;
            first.push_back(std::max<int64_t>(0, length - most));
            outputs.push_back(attend(world, {{i, first[i], length - first[i]}}, {}));
        }
    }

    void check_bits(const std::vector<Part>& parts, const Cut& cut, const std::string& what) const {
        const std::vector<float> out = attend(world, parts, cut);
        const int64_t width = world.shape.heads * world.shape.d;
        int64_t done = 0;
        for (const auto& [sequence, start, count] : parts) {
            const float* exact = outputs[sequence].data() + (start - first[sequence]) * width;
            for (int64_t i = 0; i < count * width; ++i) {
                const float expected = cut.rounds ? rounded(world.shape.type, exact[i]) : exact[i];
                if (std::memcmp(&out[done * width + i], &expected, sizeof(float)) == 0) continue;
                check(false, world.shape.text() + ", " + what + ": position " + std::to_string(start + i / width) +
                                 " of sequence " + std::to_string(sequence) + " has " +
                                 std::to_string(out[done * width + i]) + " at " + std::to_string(i % width) +
                                 " and not " + std::to_string(expected));
            }
            done += count;
        }
    }

    const World& world;
    std::vector<int64_t> first;  // positions
    std::vector<std::vector<float>> outputs;
};

void check_oracle(const World& world, size_t sequence, int64_t position, const float* out) {
    for (int64_t head = 0; head < world.shape.heads; ++head) {
        const std::vector<double> oracle = world.oracle(sequence, position, head);
        for (int64_t k = 0; k < world.shape.d; ++k) {
            const double difference = std::fabs(out[head * world.shape.d + k] - oracle[k]);
            check(difference < 3e-6, world.shape.text() + ": position " + std::to_string(position) + ", head " +
                                         std::to_string(head) + " is off by " + std::to_string(difference));
        }
    }
}

const std::vector<int64_t> kLengths = {1, 15, 16, 17, 255, 256, 257, 700};

void decode_is_attention() {
    for (const Type type : kTypes) {
        for (const auto& [heads, kv_heads] : {std::pair{3, 3}, {4, 1}, {6, 2}, {14, 1}}) {
            for (const int64_t d : {64, 80, 128}) {
                const World world({type, heads, kv_heads, d}, kLengths);
                std::vector<Part> parts;
                for (size_t i = 0; i < kLengths.size(); ++i) parts.push_back({i, kLengths[i] - 1, 1});
                const std::vector<float> out = attend(world, parts, {.split = true});
                for (size_t i = 0; i < kLengths.size(); ++i) {
                    check_oracle(world, i, kLengths[i] - 1, out.data() + static_cast<int64_t>(i) * heads * d);
                }
            }
        }
    }
}

void every_head_dimension() {
    for (const Type type : kTypes) {
        for (int64_t d = 8; d <= cuda::kMostHeadDim; d += 8) {
            const World world({type, 2, 1, d}, {19});
            const std::vector<float> out = attend(world, {{0, 0, 19}}, {});
            for (int64_t position = 0; position < 19; ++position) {
                check_oracle(world, 0, position, out.data() + position * 2 * d);
            }
        }
    }
}

void prefill_is_attention() {
    const World world({Type::bfloat16, 6, 2, 64}, {300});
    const Expected expected(world);
    for (int64_t position = 0; position < 300; ++position) {
        check_oracle(world, 0, position, expected.outputs[0].data() + position * 6 * 64);
    }
}

const std::vector<Shape> kShapes = {
    {Type::float32, 1, 1, 64}, {Type::bfloat16, 3, 3, 80}, {Type::bfloat16, 4, 2, 128}, {Type::float16, 3, 1, 64}};

// Alone, in a batch, in a bucket with rows at rest: each row of one token has the bits that its prompt gave it.
void decode_has_the_bits_of_prefill() {
    for (const Shape& shape : kShapes) {
        const World world(shape, kLengths);
        const Expected expected(world, 20);
        std::vector<Part> all, with_rests = {{0, 0, 0}};
        for (size_t i = 0; i < kLengths.size(); ++i) {
            const Part last{i, kLengths[i] - 1, 1};
            expected.check_bits({last}, {}, "alone");
            expected.check_bits({last}, {.split = true, .spare_blocks = 40}, "alone and split");
            all.push_back(last);
            with_rests.insert(with_rests.end(), {last, {i, 0, 0}});
        }
        expected.check_bits(all, {}, "a batch");
        expected.check_bits(all, {.split = true}, "a split batch");
        expected.check_bits(all, {.rounds = true}, "a batch, rounded");
        expected.check_bits(all, {.split = true, .rounds = true}, "a split batch, rounded");
        std::reverse(all.begin(), all.end());
        expected.check_bits(all, {.split = true, .spare_blocks = 7}, "the batch the other way round");
        expected.check_bits(with_rests, {}, "rows at rest");
        expected.check_bits(with_rests, {.split = true, .most_tokens = 3}, "rows at rest, room for more tokens");
    }
}

void chunks_have_the_bits_of_whole_prompts() {
    for (const Shape& shape : kShapes) {
        const World world(shape, {270, 40});
        const Expected expected(world);
        for (const std::vector<int64_t>& ends : {std::vector<int64_t>{1, 16, 250, 270}, {255, 257, 270}, {256, 270}}) {
            int64_t start = 0;
            for (const int64_t end : ends) {
                expected.check_bits({{0, start, end - start}}, {.split = start % 2 == 1}, "a chunk");
                start = end;
            }
        }
        // What a step mixes: a chunk, a token, a draft of some tokens.
        const std::vector<Part> mixed = {{1, 0, 33}, {0, 269, 1}, {0, 250, 9}};
        for (const bool split : {false, true}) {
            expected.check_bits(mixed, {.split = split}, "a mixed step");
            for (const int queries : {1, 4, 8, 16}) {
                expected.check_bits(mixed, {.split = split, .queries = queries}, "tiles of " + std::to_string(queries));
            }
            expected.check_bits(mixed, {.split = split, .order = simt::Order::backward}, "threads backward");
        }
    }
}

// A row that shares the blocks of another one's beginning has the bits of a row with blocks of its own.
void shared_blocks_have_the_bits_of_own_ones() {
    const Shape shape{Type::bfloat16, 4, 2, 64};
    World world(shape, {280, 290});
    const int64_t shared = 272;
    for (int64_t position = 0; position < shared; ++position) {
        for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
            for (int64_t k = 0; k < shape.d; ++k) {
                for (Values* cache : {&world.keys, &world.values}) {
                    cache->set(world.at(1, position, kv_head, k), cache->at(world.at(0, position, kv_head, k)));
                }
            }
        }
    }
    const Expected own(world);
    const std::vector<int64_t>& first = world.sequences[0].blocks;
    std::copy(first.begin(), first.begin() + shared / kBlock, world.sequences[1].blocks.begin());
    own.check_bits({{0, 279, 1}, {1, 289, 1}}, {.split = true}, "shared blocks in decode");
    own.check_bits({{1, 260, 30}, {0, 270, 10}}, {}, "shared blocks in prefill");
}

// Later positions, whatever is in them, change nothing.
void a_query_looks_at_nothing_behind_it() {
    World world({Type::float16, 4, 2, 64}, {270});
    const Expected expected(world);
    for (const int64_t from : {269, 257, 130}) {
        for (int64_t position = from; position < 270; ++position) {
            for (int64_t kv_head = 0; kv_head < 2; ++kv_head) {
                for (int64_t k = 0; k < 64; ++k) {
                    world.keys.set(world.at(0, position, kv_head, k), kNan);
                    world.values.set(world.at(0, position, kv_head, k), kNan);
                }
            }
        }
        const std::vector<float> out = attend(world, {{0, 0, 270}}, {});
        const int64_t width = 4 * 64;
        check(std::memcmp(out.data(), expected.outputs[0].data(), from * width * sizeof(float)) == 0,
              "NaN from position " + std::to_string(from) + " on changes what is before it");
        check(std::isnan(out[from * width]), "NaN at the query's own position is lost");
    }
}

void work_is_cut_whole() {
    const std::vector<BatchRow> rows = {{0, 1, 9}, {1, 20, 20}, {21, 5, 400}};
    const auto tiles = cuda::attend_tiles_of(rows, {0, 1, 2}, 3, 8);
    std::vector<int64_t> covered(rows.size());
    int64_t before = 1 << 20;
    for (const auto& [row, first] : tiles) {
        const int64_t last_token = std::min<int64_t>(rows[row].num_tokens - 1, (first + 7) / 3);
        const int64_t context = rows[row].context_length - rows[row].num_tokens + last_token;
        check(context <= before, "the longest contexts come first");
        before = context;
        covered[row] += std::min<int64_t>(8, rows[row].num_tokens * 3 - first);
    }
    for (size_t i = 0; i < rows.size(); ++i) check(covered[i] == rows[i].num_tokens * 3, "every query has its tile");
    check(cuda::attend_splits(cuda::attend_tiles(1, 1, 4, 64), 8, 64), "one row of 1024 positions is split");
    check(!cuda::attend_splits(cuda::attend_tiles(1, 1, 4, 64), 8, 16), "one piece is not");
    check(!cuda::attend_splits(cuda::attend_tiles(256, 1, 4, 64), 8, 64), "256 rows are not");
}

}  // namespace

}  // namespace demiurgic::test

int main(int argc, char** argv) {
    using namespace demiurgic::test;
    return run_tests(
        {
            {"decode is attention", decode_is_attention},
            {"every head dimension", every_head_dimension},
            {"prefill is attention", prefill_is_attention},
            {"decode has the bits of prefill", decode_has_the_bits_of_prefill},
            {"chunks have the bits of whole prompts", chunks_have_the_bits_of_whole_prompts},
            {"shared blocks have the bits of own ones", shared_blocks_have_the_bits_of_own_ones},
            {"a query looks at nothing behind it", a_query_looks_at_nothing_behind_it},
            {"work is cut whole", work_is_cut_whole},
        },
        argc > 1 ? argv[1] : nullptr);
}
