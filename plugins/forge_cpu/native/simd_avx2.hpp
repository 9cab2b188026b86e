// AVX2 with FMA and F16C, and with AVX-VNNI where the compiler is told so: two registers are sixteen floats. Included by
// simd.hpp only.
#pragma once

#include <immintrin.h>

namespace forge::FORGE_ISA {

struct f32x16 {
    __m256 lo, hi;
};
struct i32x16 {
    __m256i lo, hi;
};
struct u8x64 {
    __m256i lo, hi;
};
struct mask16 {
    __m256 lo, hi;  // all ones or zero
};

FORGE_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
FORGE_INLINE f32x16 splat(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
FORGE_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
FORGE_INLINE void store(float* p, f32x16 x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
// All ones in the lanes from `first` on that are below n.
FORGE_INLINE __m256i lanes_below(int n, int first) {
    const __m256i lane = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane);
}
// The first n <= 16 floats, the other lanes 0; nothing beyond them is touched.
FORGE_INLINE f32x16 load_partial(const float* p, int n) {
    return {_mm256_maskload_ps(p, lanes_below(n, 0)), _mm256_maskload_ps(p + 8, lanes_below(n, 8))};
}
FORGE_INLINE void store_partial(float* p, f32x16 x, int n) {
    _mm256_maskstore_ps(p, lanes_below(n, 0), x.lo);
    _mm256_maskstore_ps(p + 8, lanes_below(n, 8), x.hi);
}

FORGE_INLINE __m128i load_128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
FORGE_INLINE f32x16 load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(load_128(p)), _mm256_cvtph_ps(load_128(p + 8))};
}
FORGE_INLINE void store_f16(uint16_t* p, f32x16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.lo, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.hi, _MM_FROUND_TO_NEAREST_INT));
}
FORGE_INLINE __m256 eight_bf16(const uint16_t* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_128(p)), 16));
}
FORGE_INLINE f32x16 load_bf16(const uint16_t* p) { return {eight_bf16(p), eight_bf16(p + 8)}; }
// Rounds to nearest even; a NaN stays one. The result is in the high half of each lane.
FORGE_INLINE __m256i rounded_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc00000), nan);
}
FORGE_INLINE void store_bf16(uint16_t* p, f32x16 x) {
    const __m256i lo = _mm256_srli_epi32(rounded_bf16(x.lo), 16), hi = _mm256_srli_epi32(rounded_bf16(x.hi), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(lo, hi), 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), packed);
}

FORGE_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
FORGE_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
FORGE_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
FORGE_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
FORGE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
    return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
FORGE_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
FORGE_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
FORGE_INLINE f32x16 abs(f32x16 a) {
    const __m256 sign = _mm256_set1_ps(-0.f);
    return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
FORGE_INLINE mask16 less(f32x16 a, f32x16 b) {
    return {_mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ)};
}
FORGE_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) {
    return {_mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi)};
}
FORGE_INLINE uint32_t bits(mask16 m) {
    return static_cast<uint32_t>(_mm256_movemask_ps(m.lo) | _mm256_movemask_ps(m.hi) << 8);
}

FORGE_INLINE i32x16 splat_i32(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
FORGE_INLINE i32x16 operator+(i32x16 a, i32x16 b) {
    return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)};
}
FORGE_INLINE __m256i load_256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
FORGE_INLINE __m128i load_64(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
FORGE_INLINE i32x16 load_i32(const int32_t* p) { return {load_256(p), load_256(p + 8)}; }
FORGE_INLINE i32x16 load_u8_i32(const uint8_t* p) {
    return {_mm256_cvtepu8_epi32(load_64(p)), _mm256_cvtepu8_epi32(load_64(p + 8))};
}
FORGE_INLINE i32x16 load_i8_i32(const int8_t* p) {
    return {_mm256_cvtepi8_epi32(load_64(p)), _mm256_cvtepi8_epi32(load_64(p + 8))};
}
FORGE_INLINE void store_i8(int8_t* p, i32x16 x) {
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.lo, x.hi), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
FORGE_INLINE f32x16 to_float(i32x16 x) { return {_mm256_cvtepi32_ps(x.lo), _mm256_cvtepi32_ps(x.hi)}; }
FORGE_INLINE f32x16 load_i8(const int8_t* p) { return to_float(load_i8_i32(p)); }
FORGE_INLINE i32x16 round_to_int(f32x16 x) { return {_mm256_cvtps_epi32(x.lo), _mm256_cvtps_epi32(x.hi)}; }
FORGE_INLINE __m256 add_to_exponent(__m256 x, __m256i n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(n, 23)));
}
// x·2^n for a normal x and a result in the normal range.
FORGE_INLINE f32x16 scale_by_power_of_two(f32x16 x, i32x16 n) {
    return {add_to_exponent(x.lo, n.lo), add_to_exponent(x.hi, n.hi)};
}

FORGE_INLINE float reduce_add(f32x16 x) {
    const __m256 eight = _mm256_add_ps(x.lo, x.hi);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
FORGE_INLINE float reduce_max(f32x16 x) {
    const __m256 eight = _mm256_max_ps(x.lo, x.hi);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
FORGE_INLINE int32_t reduce_add(i32x16 x) {
    const __m256i eight = _mm256_add_epi32(x.lo, x.hi);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(two) + _mm_extract_epi32(two, 1);
}

FORGE_INLINE u8x64 load_bytes(const uint8_t* p) { return {load_256(p), load_256(p + 32)}; }
FORGE_INLINE u8x64 low_nibbles(u8x64 x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.lo, mask), _mm256_and_si256(x.hi, mask)};
}
FORGE_INLINE u8x64 high_nibbles(u8x64 x) {
    return low_nibbles({_mm256_srli_epi16(x.lo, 4), _mm256_srli_epi16(x.hi, 4)});
}
template <int Shift, int Mask>
FORGE_INLINE __m256i merge_half(__m256i base, __m256i x) {
    if constexpr (Shift > 0) x = _mm256_slli_epi16(x, Shift);
    if constexpr (Shift < 0) x = _mm256_srli_epi16(x, -Shift);
    return _mm256_or_si256(base, _mm256_and_si256(x, _mm256_set1_epi8(Mask)));
}
// base | ((x shifted left by Shift, right if negative) & Mask), byte by byte; Mask has only bits that stay in their byte.
template <int Shift, int Mask>
FORGE_INLINE u8x64 merge_bits(u8x64 base, u8x64 x) {
    return {merge_half<Shift, Mask>(base.lo, x.lo), merge_half<Shift, Mask>(base.hi, x.hi)};
}

constexpr int kTileRows = 4;  // activation rows that one pass over a panel serves: sixteen registers hold no more
constexpr int kRowGroup = 1;  // rows whose integer sums are in flight together

// Bytes 4i to 4i + 3 of an activation row, in every lane.
FORGE_INLINE __m256i splat_bytes(const uint8_t* a) { return _mm256_set1_epi32(peek<int32_t>(a)); }

#if defined(__AVXVNNI__)

template <int N, int Bits, int Offset, int G>
FORGE_INLINE void dot_rows(i32x16 (&c)[G], const u8x64* w, const uint8_t* a, int stride, int sum_at) {
    for (int g = 0; g < G; ++g) {
        c[g] = splat_i32(Offset == 0 ? 0 : peek<int32_t>(a + g * stride + sum_at));
#pragma GCC unroll 8
        for (int j = 0; j < N; ++j) {
            const __m256i q = splat_bytes(a + g * stride + 4 * j);
            c[g].lo = _mm256_dpbusd_avx_epi32(c[g].lo, w[j].lo, q);
            c[g].hi = _mm256_dpbusd_avx_epi32(c[g].hi, w[j].hi, q);
        }
    }
}

#else

// Sums of pairs of 8-bit products fit 16 bits, where several of them are added before they widen: with activations up to
// 127, 8 products of 4-bit weights, 4 of 5 bits and 2 of 6 bits (8·2·15·127 = 30,480 and so on) stay below 2^15. For
// 8-bit weights (w - 128)·a = |w - 128|·(±a), whose pairs reach 2·128·127 = 32,512.
template <int Bits>
FORGE_INLINE __m256i pair_products(__m256i w, __m256i q) {
    if constexpr (Bits <= 6) return _mm256_maddubs_epi16(w, q);
    const __m256i signed_w = _mm256_xor_si256(w, _mm256_set1_epi8(-128));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(signed_w), _mm256_sign_epi8(q, signed_w));
}

// c += the products of vectors First to N - 1.
template <int First, int N, int Bits>
FORGE_INLINE void add_products(i32x16& c, const u8x64* w, const uint8_t* a) {
    constexpr int kPairs = Bits <= 4 ? 8 : Bits == 5 ? 4 : Bits == 6 ? 2 : 1;
    constexpr int kEnd = First + kPairs < N ? First + kPairs : N;
    const __m256i ones = _mm256_set1_epi16(1), start = splat_bytes(a + 4 * First);
    __m256i lo = pair_products<Bits>(w[First].lo, start), hi = pair_products<Bits>(w[First].hi, start);
    for (int j = First + 1; j < kEnd; ++j) {
        const __m256i q = splat_bytes(a + 4 * j);
        lo = _mm256_add_epi16(lo, pair_products<Bits>(w[j].lo, q));
        hi = _mm256_add_epi16(hi, pair_products<Bits>(w[j].hi, q));
    }
    c.lo = _mm256_add_epi32(c.lo, _mm256_madd_epi16(lo, ones));
    c.hi = _mm256_add_epi32(c.hi, _mm256_madd_epi16(hi, ones));
    if constexpr (kEnd < N) add_products<kEnd, N, Bits>(c, w, a);
}

template <int N, int Bits, int Offset, int G>
FORGE_INLINE void dot_rows(i32x16 (&c)[G], const u8x64* w, const uint8_t* a, int stride, int sum_at) {
    static_assert(Bits <= 6 || (Bits == 8 && Offset == 128));
    for (int g = 0; g < G; ++g) {
        c[g] = splat_i32(Offset == 0 || Bits == 8 ? 0 : peek<int32_t>(a + g * stride + sum_at));
        add_products<0, N, Bits>(c[g], w, a + g * stride);
    }
}

#endif

// One step of a product of registers, and a value that the compiler can't foresee: for ceiling.cpp.
FORGE_INLINE void add_product(i32x16& c, u8x64 w, u8x64 a) {
#if defined(__AVXVNNI__)
    c = {_mm256_dpbusd_avx_epi32(c.lo, w.lo, a.lo), _mm256_dpbusd_avx_epi32(c.hi, w.hi, a.hi)};
#else
    const __m256i ones = _mm256_set1_epi16(1);
    c = c + i32x16{_mm256_madd_epi16(_mm256_maddubs_epi16(w.lo, a.lo), ones),
                   _mm256_madd_epi16(_mm256_maddubs_epi16(w.hi, a.hi), ones)};
#endif
}
FORGE_INLINE void hide(u8x64& x) { asm volatile("" : "+x"(x.lo), "+x"(x.hi)); }

}  // namespace forge::FORGE_ISA
