#pragma once

// 4 lanes of float32 (Armv8 Advanced SIMD). Included inside the namespace of an instruction set.

struct Vec {
    static constexpr int N = 4;
    float32x4_t v;
};

inline uint32x4_t first(int64_t n) {
    const uint32_t lanes[4] = {0, 1, 2, 3};
    return vcltq_u32(vld1q_u32(lanes), vdupq_n_u32(static_cast<uint32_t>(n)));
}

inline Vec zero() { return {vdupq_n_f32(0)}; }
inline Vec broadcast(float x) { return {vdupq_n_f32(x)}; }

inline Vec load(const float* p) { return {vld1q_f32(p)}; }
inline Vec load(const Float16* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(&p->bits)))}; }
inline Vec load(const BFloat16* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&p->bits), 16))}; }

// The first n lanes, n < 4; the others are 0 and not read.
template <class T>
inline Vec load_first(const T* p, int64_t n) {
    T padded[4] = {};
    for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
    return load(padded);
}

inline void store(float* p, Vec x) { vst1q_f32(p, x.v); }
inline void store(Float16* p, Vec x) { vst1_u16(&p->bits, vreinterpret_u16_f16(vcvt_f16_f32(x.v))); }
inline void store(BFloat16* p, Vec x) {
    const uint32x4_t bits = vreinterpretq_u32_f32(x.v);
    const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
    const uint32x4_t is_number = vceqq_f32(x.v, x.v);
    vst1_u16(&p->bits, vshrn_n_u32(vbslq_u32(is_number, rounded, vdupq_n_u32(0x7fc00000)), 16));
}

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
inline Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }  // b where either is NaN
inline Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }  // b where either is NaN
inline Vec round(Vec x) { return {vrndnq_f32(x.v)}; }
inline Vec times_power_of_two(Vec x, Vec k) {  // k from -126 to 127
    return {vmulq_f32(x.v, vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(k.v), vdupq_n_s32(127)), 23)))};
}
inline Vec keep_first(Vec x, int64_t n) { return {vbslq_f32(first(n), x.v, vdupq_n_f32(0))}; }
inline Vec where_first(int64_t n, Vec x, Vec y) { return {vbslq_f32(first(n), x.v, y.v)}; }

// 4 rows of 4 lanes, `stride` bytes apart, as columns.
inline void load_turned(const char* p, int64_t stride, Vec* out) {
    const auto row = [&](int i) { return vld1q_f32(reinterpret_cast<const float*>(p + i * stride)); };
    const float32x4x2_t even = vzipq_f32(row(0), row(2)), odd = vzipq_f32(row(1), row(3));
    const float32x4x2_t first = vzipq_f32(even.val[0], odd.val[0]), last = vzipq_f32(even.val[1], odd.val[1]);
    out[0] = {first.val[0]};
    out[1] = {first.val[1]};
    out[2] = {last.val[0]};
    out[3] = {last.val[1]};
}

inline float sum(Vec x) {
    const float32x2_t two = vadd_f32(vget_low_f32(x.v), vget_high_f32(x.v));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}

template <int n>
inline void sums(const Vec* x, float* out) {
    for (int i = 0; i < n; ++i) out[i] = sum(x[i]);
}

inline float largest(Vec x) { return vmaxvq_f32(x.v); }
