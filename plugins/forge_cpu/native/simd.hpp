// Sixteen float lanes on every instruction set: what kernels are written in.
//
// A kernel source includes this file, lives in `namespace forge::FORGE_ISA` and is compiled once per instruction set
// (CMakeLists.txt defines FORGE_ISA and the compiler flags). All functions here are forced inline, so none of them
// leaves code behind that a linker might use for another set. Kernel sources avoid library templates for the same
// reason: an out-of-line `std::` function compiled for AVX-512 could be the copy that everybody gets.
//
// Each set provides the same types and functions:
//   f32x16  zero splat load store load_partial store_partial load_f16 store_f16 load_bf16 store_bf16 load_i8
//           + - * fma(a, b, c) = a·b + c  min max abs  round_to_int  reduce_add reduce_max  exp  select
//   i32x16  splat_i32 load_i32 load_u8_i32 load_i8_i32 to_float store_i8 (saturating) reduce_add
//   mask16  less(a, b) = a < b, lane by lane; bits(mask) = one bit a lane, lane 0 lowest
//   u8x64   load_bytes low_nibbles high_nibbles merge_bits: 16 lanes of 4 bytes each, the operand of the integer product
//   dot_rows  the exact product of packed weights and int8 activations (contract below)
// Reductions add lane i to lane i + 8, then + 4, + 2, + 1: the same order on every set.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef FORGE_ISA
#error "kernels are compiled once per instruction set: FORGE_ISA must name it"
#endif

#define FORGE_INLINE static inline __attribute__((always_inline))

namespace forge::FORGE_ISA {

// The bytes of `T` at an address of any alignment.
template <class T>
FORGE_INLINE T peek(const void* at) {
    T value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

FORGE_INLINE void prefetch(const void* at) { __builtin_prefetch(at, 0, 3); }

}  // namespace forge::FORGE_ISA

// The contract of dot_rows, which each set implements:
//   template <int N, int Bits, int Offset, int G>
//   void dot_rows(i32x16 (&c)[G], const u8x64* w, const uint8_t* a, int stride, int sum_at)
// w: N vectors, lane r of vector j holds weights 4j..4j+3 of output row r as unsigned numbers of `Bits` bits, `Offset`
// above their true values. a: G activation rows `stride` bytes apart, 4·N int8 values in [-127, 127] each; at a + sum_at
// the int32 -Offset·Σa. c[g] = Σ (w - Offset)·a, exact.
#if defined(FORGE_ISA_AVX512)
#include "simd_avx512.hpp"
#elif defined(FORGE_ISA_AVX2)
#include "simd_avx2.hpp"
#elif defined(FORGE_ISA_NEON)
#include "simd_neon.hpp"
#else
#include "simd_portable.hpp"
#endif

namespace forge::FORGE_ISA {

FORGE_INLINE f32x16 operator-(f32x16 a) { return zero() - a; }

// e^x, relative error below 2e-7; 0 below -87.3 (where the result would be subnormal), clamped above 88.3.
// x = n·ln 2 + r with |r| <= ln 2 / 2, then the Taylor polynomial of degree 7 and n added to the exponent.
FORGE_INLINE f32x16 exp(f32x16 x) {
    const f32x16 lowest = splat(-87.3f);
    const mask16 vanishes = less(x, lowest);
    x = min(max(x, lowest), splat(88.3f));
    const i32x16 n = round_to_int(x * splat(1.44269504f));
    const f32x16 whole = to_float(n);
    f32x16 r = fma(whole, splat(-0.693145752f), x);  // ln 2 in two parts; the first has 9 trailing zero bits
    r = fma(whole, splat(-1.42860677e-6f), r);
    f32x16 p = splat(1.f / 5040);
    p = fma(p, r, splat(1.f / 720));
    p = fma(p, r, splat(1.f / 120));
    p = fma(p, r, splat(1.f / 24));
    p = fma(p, r, splat(1.f / 6));
    p = fma(p, r, splat(1.f / 2));
    p = fma(p, r, splat(1.f));
    p = fma(p, r, splat(1.f));
    return select(vanishes, zero(), scale_by_power_of_two(p, n));
}

}  // namespace forge::FORGE_ISA
