// AVX-512 (F, BW, VL, DQ, VNNI): one register is sixteen floats. Included by simd.hpp only.
#pragma once

#include <immintrin.h>

namespace forge::FORGE_ISA {

struct f32x16 {
    __m512 v;
};
struct i32x16 {
    __m512i v;
};
struct u8x64 {
    __m512i v;
};
struct mask16 {
    __mmask16 v;
};

FORGE_INLINE f32x16 zero() { return {_mm512_setzero_ps()}; }
FORGE_INLINE f32x16 splat(float x) { return {_mm512_set1_ps(x)}; }
FORGE_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
FORGE_INLINE void store(float* p, f32x16 x) { _mm512_storeu_ps(p, x.v); }
FORGE_INLINE __mmask16 first_lanes(int n) { return static_cast<__mmask16>((1u << n) - 1u); }
// The first n <= 16 floats, the other lanes 0; nothing beyond them is touched.
FORGE_INLINE f32x16 load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(first_lanes(n), p)}; }
FORGE_INLINE void store_partial(float* p, f32x16 x, int n) { _mm512_mask_storeu_ps(p, first_lanes(n), x.v); }

FORGE_INLINE f32x16 load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FORGE_INLINE void store_f16(uint16_t* p, f32x16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
FORGE_INLINE f32x16 load_bf16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// Rounds to nearest even; a NaN stays one.
FORGE_INLINE void store_bf16(uint16_t* p, f32x16 x) {
    const __m512i bits = _mm512_castps_si512(x.v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
}

FORGE_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
FORGE_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FORGE_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FORGE_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
FORGE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FORGE_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
FORGE_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
FORGE_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
FORGE_INLINE mask16 less(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
FORGE_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) { return {_mm512_mask_blend_ps(m.v, no.v, yes.v)}; }
FORGE_INLINE uint32_t bits(mask16 m) { return m.v; }

FORGE_INLINE i32x16 splat_i32(int32_t x) { return {_mm512_set1_epi32(x)}; }
FORGE_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
FORGE_INLINE i32x16 load_i32(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
FORGE_INLINE i32x16 load_u8_i32(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
FORGE_INLINE i32x16 load_i8_i32(const int8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
FORGE_INLINE void store_i8(int8_t* p, i32x16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(x.v));
}
FORGE_INLINE f32x16 to_float(i32x16 x) { return {_mm512_cvtepi32_ps(x.v)}; }
FORGE_INLINE f32x16 load_i8(const int8_t* p) { return to_float(load_i8_i32(p)); }
FORGE_INLINE i32x16 round_to_int(f32x16 x) { return {_mm512_cvtps_epi32(x.v)}; }
// x·2^n for a normal x and a result in the normal range.
FORGE_INLINE f32x16 scale_by_power_of_two(f32x16 x, i32x16 n) {
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_slli_epi32(n.v, 23)))};
}

FORGE_INLINE float reduce_add(f32x16 x) {
    const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
FORGE_INLINE float reduce_max(f32x16 x) {
    const __m256 eight = _mm256_max_ps(_mm512_castps512_ps256(x.v), _mm512_extractf32x8_ps(x.v, 1));
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
FORGE_INLINE int32_t reduce_add(i32x16 x) { return _mm512_reduce_add_epi32(x.v); }

FORGE_INLINE u8x64 load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
FORGE_INLINE u8x64 low_nibbles(u8x64 x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
FORGE_INLINE u8x64 high_nibbles(u8x64 x) { return {_mm512_and_si512(_mm512_srli_epi16(x.v, 4), _mm512_set1_epi8(15))}; }
// base | ((x shifted left by Shift, right if negative) & Mask), byte by byte; Mask has only bits that stay in their byte.
template <int Shift, int Mask>
FORGE_INLINE u8x64 merge_bits(u8x64 base, u8x64 x) {
    __m512i moved = x.v;
    if constexpr (Shift > 0) moved = _mm512_slli_epi16(x.v, Shift);
    if constexpr (Shift < 0) moved = _mm512_srli_epi16(x.v, -Shift);
    return {_mm512_ternarylogic_epi32(moved, _mm512_set1_epi8(Mask), base.v, 0xEA)};  // (moved & mask) | base
}

#if defined(__AVX512BF16__)
#define FORGE_HAS_PAIR_PRODUCTS 1

// Sixteen pairs of bfloat16.
struct bf16x32 {
    __m512i v;
};
FORGE_INLINE bf16x32 load_pairs(const void* p) { return {_mm512_loadu_si512(p)}; }
FORGE_INLINE void store_pairs(void* p, bf16x32 x) { _mm512_storeu_si512(p, x.v); }
// Lane i: (even[i], odd[i]), to nearest even; subnormals become 0.
FORGE_INLINE bf16x32 round_pairs(f32x16 even, f32x16 odd) {
    alignas(64) static constexpr uint16_t kInterleave[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                             8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
    const auto halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd.v, even.v));
    return {_mm512_permutexvar_epi16(_mm512_load_si512(kInterleave), halves)};
}
// Sixteen floats, rounded, side by side.
FORGE_INLINE void store_rounded(void* p, f32x16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v)));
}
// c + a.odd·b.odd + a.even·b.even in each lane, b being the same pair for all.
FORGE_INLINE f32x16 add_pairs(f32x16 c, bf16x32 a, uint32_t b) {
    return {_mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v),
                             reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(b))))};
}
#endif

constexpr int kTileRows = 16;  // activation rows that one pass over a panel serves
constexpr int kRowGroup = 4;   // rows whose integer sums are in flight together

template <int N, int Bits, int Offset, int G>
FORGE_INLINE void dot_rows(i32x16 (&c)[G], const u8x64* w, const uint8_t* a, int stride, int sum_at) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
        c[g].v = Offset == 0 ? _mm512_setzero_si512() : _mm512_set1_epi32(peek<int32_t>(a + g * stride + sum_at));
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j)
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
            c[g].v = _mm512_dpbusd_epi32(c[g].v, w[j].v, _mm512_set1_epi32(peek<int32_t>(a + g * stride + 4 * j)));
}

// One step of a product of registers, and a value that the compiler can't foresee: for ceiling.cpp.
FORGE_INLINE void add_product(i32x16& c, u8x64 w, u8x64 a) { c.v = _mm512_dpbusd_epi32(c.v, w.v, a.v); }
FORGE_INLINE void hide(u8x64& x) { asm volatile("" : "+v"(x.v)); }

}  // namespace forge::FORGE_ISA
