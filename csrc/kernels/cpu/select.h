#pragma once

// A threshold instead of a sort: where a descending order of keys reaches a given weight. Included inside the namespace of
// an instruction set.

// An integer in the order of float32 numbers; -0 and 0 are the same.
inline uint32_t key_of(float x) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, x + 0.0f);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}

inline float float_of_key(uint32_t key) { return __builtin_bit_cast(float, key >> 31 ? key & 0x7fffffffu : ~key); }

struct Cut {
    uint32_t key;    // the largest key such that it and all above it weigh the target or more
    int64_t before;  // what all above it weigh: less than the target
};

// Most significant digit first: each round weighs the digits, finds the one in which the target is reached, and goes on
// with the keys that have it. n: 1 or more. weights: not negative, their sum not below the target. spare_*: [n], written.
inline Cut find_cut(const uint32_t* keys, const int64_t* weights, int64_t n, int64_t target, uint32_t* spare_keys,
                    int64_t* spare_weights) {
    constexpr uint32_t kDigits = 2048;  // 11 bits, 11 bits, 10 bits
    int64_t weight_of[kDigits];
    Cut cut = {0, 0};
    for (const int shift : {21, 10, 0}) {
        for (int64_t& weight : weight_of) weight = 0;
        const uint32_t mask = shift > 0 ? kDigits - 1 : 1023;
        for (int64_t i = 0; i < n; ++i) weight_of[keys[i] >> shift & mask] += weights[i];
        uint32_t digit = mask;
        while (cut.before + weight_of[digit] < target) cut.before += weight_of[digit--];
        cut.key |= digit << shift;
        if (shift == 0) break;
        int64_t num_left = 0;
        for (int64_t i = 0; i < n; ++i) {  // may write over what it has read
            const uint32_t key = keys[i];
            spare_weights[num_left] = weights[i];
            spare_keys[num_left] = key;
            num_left += (key >> shift & mask) == digit;
        }
        keys = spare_keys;
        weights = spare_weights;
        n = num_left;
    }
    return cut;
}
