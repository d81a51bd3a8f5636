#pragma once

#include <cstdint>

// The sampler's arithmetic. exp and log are polynomials (Cephes, S. Moshier) of separate float32 multiplications and
// additions, so that every device and instruction set gives the same bits. T is float, or what has its operators: a tensor, lanes.
// Compile with -ffp-contract=off. constexpr: that is how nvcc takes a function for the device too.
namespace demiurgic::arithmetic {

constexpr float kLog2E = 1.44269504088896341f;
constexpr float kLn2High = 0.693359375f;  // few bits: k * kLn2High is exact
constexpr float kLn2Low = -2.12194440e-4f;

// e^r for |r| <= ln(2) / 2
template <class T>
constexpr T exp_polynomial(const T& r) {
    T p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return p * (r * r) + r + 1.0f;
}

// ln(1 + f) for sqrt(1/2) <= 1 + f <= sqrt(2)
template <class T>
constexpr T log_polynomial(const T& f) {
    const T square = f * f;
    T p = f * 7.0376836292e-2f + -1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f + -1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f + -1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f + -2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    return f + (p * f * square - square * 0.5f);
}

// Probability masses are integers in units of 2^-40 of the largest: their sums do not depend on order.
constexpr int kMassBits = 40;
constexpr float kMassUnit = 1099511627776.0f;  // 2^40

// p of top_p and typical_p is an integer in units of 2^-30.
constexpr int kNucleusBits = 30;

}  // namespace demiurgic::arithmetic
