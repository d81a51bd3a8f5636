#pragma once

// Numbers of 16 bits by their definition, slowly, in nothing of the kernels' own code; arrays of them; random ones.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace demiurgic::test {

enum class Type { float32, bfloat16, float16 };
constexpr Type kTypes[] = {Type::float32, Type::bfloat16, Type::float16};

inline const char* name_of(Type type) {
    return type == Type::float32 ? "float32" : type == Type::bfloat16 ? "bfloat16" : "float16";
}

// IEEE 754 binary formats of 16 bits.
struct Format {
    int exponent_bits, mantissa_bits;

    int bias() const { return (1 << (exponent_bits - 1)) - 1; }
    int infinity() const { return ((1 << exponent_bits) - 1) << mantissa_bits; }

    double decode(uint16_t bits) const {
        const int rest = bits & 0x7fff, exponent = rest >> mantissa_bits, mantissa = rest - (exponent << mantissa_bits);
        const double sign = bits >> 15 ? -1 : 1;
        if (rest > infinity()) return std::numeric_limits<double>::quiet_NaN();
        if (rest == infinity()) return sign * std::numeric_limits<double>::infinity();
        if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias() - mantissa_bits);
        return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias() - mantissa_bits);
    }

    // To the nearest, ties to even; x is a number.
    uint16_t encode(double x) const {
        if (x == 0) return sign_of(x);
        int exponent;
        std::frexp(x, &exponent);
        exponent = std::max(exponent - 1, 1 - bias());
        if (exponent > bias()) return sign_of(x) | static_cast<uint16_t>(infinity());
        const int units = static_cast<int>(std::nearbyint(std::ldexp(std::fabs(x), mantissa_bits - exponent)));
        const int bits = ((exponent + bias() - 1) << mantissa_bits) + units;
        return sign_of(x) | static_cast<uint16_t>(std::min(bits, infinity()));
    }

private:
    static uint16_t sign_of(double x) { return std::signbit(x) ? 0x8000 : 0; }
};

inline Format format_of(Type type) { return type == Type::bfloat16 ? Format{8, 7} : Format{5, 10}; }

// What the bits mean, from a table: the oracle reads millions.
inline double decode(Type type, uint16_t bits) {
    const auto make = [](Type t) {
        std::vector<double> table;
        for (int i = 0; i < 65536; ++i) table.push_back(format_of(t).decode(static_cast<uint16_t>(i)));
        return table;
    };
    static const std::vector<double> bfloat16 = make(Type::bfloat16), float16 = make(Type::float16);
    return (type == Type::bfloat16 ? bfloat16 : float16)[bits];
}

// Numbers of one type; an array of exactly their size, so that a sanitizer sees what lies beyond.
struct Values {
    explicit Values(Type t = Type::float32, int64_t size = 0) : type(t) {
        type == Type::float32 ? floats.resize(size) : halves.resize(size);
    }

    void* data() { return type == Type::float32 ? static_cast<void*>(floats.data()) : halves.data(); }
    const void* data() const { return const_cast<Values*>(this)->data(); }
    double at(int64_t i) const {
        return type == Type::float32 ? static_cast<double>(floats[i]) : decode(type, halves[i]);
    }
    void set(int64_t i, double x) {
        if (type == Type::float32) {
            floats[i] = static_cast<float>(x);
        } else {
            halves[i] = std::isnan(x) ? 0x7fff : format_of(type).encode(x);
        }
    }

    Type type;
    std::vector<float> floats;
    std::vector<uint16_t> halves;
};

// Reads an element of an array of that type.
inline double read(Type type, const void* array, int64_t i) {
    if (type == Type::float32) return static_cast<double>(static_cast<const float*>(array)[i]);
    return decode(type, static_cast<const uint16_t*>(array)[i]);
}

// The same numbers on every machine (splitmix64, S. Vigna).
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed) {}

    uint64_t bits() {
        uint64_t z = state_ += 0x9e3779b97f4a7c15;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
        z = (z ^ z >> 27) * 0x94d049bb133111eb;
        return z ^ z >> 31;
    }
    int64_t below(int64_t end) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(end)); }
    double between(double low, double high) { return low + (high - low) * std::ldexp(bits() >> 11, -53); }

private:
    uint64_t state_;
};

}  // namespace demiurgic::test
