#pragma once

// Operations on single rows of activations. Included inside the namespace of an instruction set, after products.h.

#include "kernels/cpu/products.h"

// e^x to 2 units in the last place (Cephes, S. Moshier); x is brought into [-87, 88] first, NaN stays NaN.
inline Vec exponential(Vec x) {
    x = min(broadcast(88.0f), max(broadcast(-87.0f), x));
    const Vec k = round(x * broadcast(1.44269504088896341f));
    const Vec r = fma(k, broadcast(2.12194440e-4f), fma(k, broadcast(-0.693359375f), x));
    Vec p = fma(r, broadcast(1.9875691500e-4f), broadcast(1.3981999507e-3f));
    p = fma(p, r, broadcast(8.3334519073e-3f));
    p = fma(p, r, broadcast(4.1665795894e-2f));
    p = fma(p, r, broadcast(1.6666665459e-1f));
    p = fma(p, r, broadcast(5.0000001201e-1f));
    p = fma(p, r * r, r + broadcast(1.0f));
    return times_power_of_two(p, k);
}

inline float exponential(float x) {
    float lanes[Vec::N];
    store(lanes, exponential(broadcast(x)));
    return lanes[0];
}

template <class F>
inline void for_lanes(int64_t n, F f) {  // f(first lane, how many of them)
    for (int64_t i = 0; i < n; i += Vec::N) f(i, smaller(Vec::N, n - i));
}

// RMSNorm (Zhang and Sennrich, 2019) of x [n]. T: type of a norm that is not float32.
template <class T>
inline void rms_norm(const float* x, const Norm& norm, int64_t n, float* out) {
    Vec squares = zero();
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec lanes = load_some(x + i, count);
        squares = fma(lanes, lanes, squares);
    });
    const Vec scale = broadcast(1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(n) + norm.eps));
    for_lanes(n, [&](int64_t i, int64_t count) {
        const Vec weight = norm.is_float ? load_some(static_cast<const float*>(norm.weight) + i, count)
                                         : load_some(static_cast<const T*>(norm.weight) + i, count);
        store_some(out + i, load_some(x + i, count) * scale * weight, count);
    });
}

// y [w.num] += the bias of rows of W, where there is one.
template <class T>
inline void add_bias(const MatrixRows& w, float* y) {
    if (!w.matrix->bias) return;
    const T* bias = static_cast<const T*>(w.matrix->bias) + w.first;
    for_lanes(w.num, [&](int64_t i, int64_t count) {
        store_some(y + i, load_some(y + i, count) + load_some(bias + i, count), count);
    });
}

// Half-rotation form: the first and second half of a head x [d] are the two coordinates that turn. cos, sin [d / 2]
inline void rotate(float* x, const float* cos, const float* sin, int64_t d) {
    const int64_t half = d / 2;
    for_lanes(half, [&](int64_t i, int64_t count) {
        const Vec first = load_some(x + i, count), second = load_some(x + half + i, count);
        const Vec c = load_some(cos + i, count), s = load_some(sin + i, count);
        store_some(x + i, first * c - second * s, count);
        store_some(x + half + i, second * c + first * s, count);
    });
}

inline void activate(Activation activation, float* x, int64_t n) {
    switch (activation) {
        case Activation::silu:
            for_lanes(n, [&](int64_t i, int64_t count) {
                const Vec v = load_some(x + i, count);
                store_some(x + i, v / (broadcast(1.0f) + exponential(zero() - v)), count);
            });
            break;
        case Activation::gelu:  // by the error function, one at a time: no model of today is fast through it
            for (int64_t i = 0; i < n; ++i) x[i] = 0.5f * x[i] * (1.0f + __builtin_erff(x[i] * 0.70710678118654752f));
            break;
        case Activation::relu:
            for_lanes(
                n, [&](int64_t i, int64_t count) { store_some(x + i, max(zero(), load_some(x + i, count)), count); });
            break;
    }
}

// x [n] *= y [n]
inline void multiply(float* x, const float* y, int64_t n) {
    for_lanes(n, [&](int64_t i, int64_t count) {
        store_some(x + i, load_some(x + i, count) * load_some(y + i, count), count);
    });
}

// x [n] += y [n]
inline void add(float* x, const float* y, int64_t n) {
    for_lanes(n, [&](int64_t i, int64_t count) {
        store_some(x + i, load_some(x + i, count) + load_some(y + i, count), count);
    });
}
