// NEON with the dot product extension (ARMv8.2): four registers are sixteen floats. Included by simd.hpp only.
#pragma once

#include <arm_neon.h>

namespace forge::FORGE_ISA {

struct f32x16 {
    float32x4_t v[4];
};
struct i32x16 {
    int32x4_t v[4];
};
struct u8x64 {
    uint8x16_t v[4];
};
struct mask16 {
    uint32x4_t v[4];  // all ones or zero
};

// One operation on each of the four registers.
#define FORGE_QUARTERS(Type, expression)                        \
    do {                                                        \
        Type result;                                            \
        for (int i = 0; i < 4; ++i) result.v[i] = (expression); \
        return result;                                          \
    } while (false)

FORGE_INLINE f32x16 splat(float x) { FORGE_QUARTERS(f32x16, vdupq_n_f32(x)); }
FORGE_INLINE f32x16 zero() { return splat(0.f); }
FORGE_INLINE f32x16 load(const float* p) { FORGE_QUARTERS(f32x16, vld1q_f32(p + 4 * i)); }
FORGE_INLINE void store(float* p, f32x16 x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
}
// The first n <= 16 floats, the other lanes 0; nothing beyond them is touched.
FORGE_INLINE f32x16 load_partial(const float* p, int n) {
    float whole[16] = {};
    for (int i = 0; i < n; ++i) whole[i] = p[i];
    return load(whole);
}
FORGE_INLINE void store_partial(float* p, f32x16 x, int n) {
    float whole[16];
    store(whole, x);
    for (int i = 0; i < n; ++i) p[i] = whole[i];
}

FORGE_INLINE f32x16 load_f16(const uint16_t* p) {
    FORGE_QUARTERS(f32x16, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))));
}
FORGE_INLINE void store_f16(uint16_t* p, f32x16 x) {
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
}
FORGE_INLINE f32x16 load_bf16(const uint16_t* p) {
    FORGE_QUARTERS(f32x16, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)));
}
// Rounds to nearest even; a NaN stays one.
FORGE_INLINE void store_bf16(uint16_t* p, f32x16 x) {
    for (int i = 0; i < 4; ++i) {
        const uint32x4_t bits = vreinterpretq_u32_f32(x.v[i]);
        const uint32x4_t odd = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
        const uint32x4_t rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        const uint32x4_t kept = vbslq_u32(vceqq_f32(x.v[i], x.v[i]), rounded, vdupq_n_u32(0x7fc00000));
        vst1_u16(p + 4 * i, vshrn_n_u32(kept, 16));
    }
}

FORGE_INLINE f32x16 operator+(f32x16 a, f32x16 b) { FORGE_QUARTERS(f32x16, vaddq_f32(a.v[i], b.v[i])); }
FORGE_INLINE f32x16 operator-(f32x16 a, f32x16 b) { FORGE_QUARTERS(f32x16, vsubq_f32(a.v[i], b.v[i])); }
FORGE_INLINE f32x16 operator*(f32x16 a, f32x16 b) { FORGE_QUARTERS(f32x16, vmulq_f32(a.v[i], b.v[i])); }
FORGE_INLINE f32x16 operator/(f32x16 a, f32x16 b) { FORGE_QUARTERS(f32x16, vdivq_f32(a.v[i], b.v[i])); }
FORGE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { FORGE_QUARTERS(f32x16, vfmaq_f32(c.v[i], a.v[i], b.v[i])); }
FORGE_INLINE mask16 less(f32x16 a, f32x16 b) { FORGE_QUARTERS(mask16, vcltq_f32(a.v[i], b.v[i])); }
FORGE_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) {
    FORGE_QUARTERS(f32x16, vbslq_f32(m.v[i], yes.v[i], no.v[i]));
}
// As x86 has them: the second operand where either is a NaN.
FORGE_INLINE f32x16 min(f32x16 a, f32x16 b) { return select(less(a, b), a, b); }
FORGE_INLINE f32x16 max(f32x16 a, f32x16 b) { return select(less(b, a), a, b); }
FORGE_INLINE f32x16 abs(f32x16 a) { FORGE_QUARTERS(f32x16, vabsq_f32(a.v[i])); }
FORGE_INLINE uint32_t bits(mask16 m) {
    const int32x4_t places = {0, 1, 2, 3};
    uint32_t packed = 0;
    for (int i = 0; i < 4; ++i) packed |= vaddvq_u32(vshlq_u32(vshrq_n_u32(m.v[i], 31), places)) << (4 * i);
    return packed;
}

FORGE_INLINE i32x16 splat_i32(int32_t x) { FORGE_QUARTERS(i32x16, vdupq_n_s32(x)); }
FORGE_INLINE i32x16 operator+(i32x16 a, i32x16 b) { FORGE_QUARTERS(i32x16, vaddq_s32(a.v[i], b.v[i])); }
FORGE_INLINE i32x16 load_i32(const int32_t* p) { FORGE_QUARTERS(i32x16, vld1q_s32(p + 4 * i)); }
FORGE_INLINE i32x16 load_i8_i32(const int8_t* p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
    return {{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}};
}
FORGE_INLINE i32x16 load_u8_i32(const uint8_t* p) {
    const uint8x16_t bytes = vld1q_u8(p);
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
    return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))), vreinterpretq_s32_u32(vmovl_high_u16(low)),
             vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))), vreinterpretq_s32_u32(vmovl_high_u16(high))}};
}
FORGE_INLINE void store_i8(int8_t* p, i32x16 x) {
    const int16x8_t low = vcombine_s16(vqmovn_s32(x.v[0]), vqmovn_s32(x.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(x.v[2]), vqmovn_s32(x.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
FORGE_INLINE f32x16 to_float(i32x16 x) { FORGE_QUARTERS(f32x16, vcvtq_f32_s32(x.v[i])); }
FORGE_INLINE f32x16 load_i8(const int8_t* p) { return to_float(load_i8_i32(p)); }
FORGE_INLINE i32x16 round_to_int(f32x16 x) { FORGE_QUARTERS(i32x16, vcvtnq_s32_f32(x.v[i])); }
// x·2^n for a normal x and a result in the normal range.
FORGE_INLINE f32x16 scale_by_power_of_two(f32x16 x, i32x16 n) {
    FORGE_QUARTERS(f32x16, vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x.v[i]), vshlq_n_s32(n.v[i], 23))));
}

FORGE_INLINE float reduce_add(f32x16 x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
FORGE_INLINE float reduce_max(f32x16 x) {
    return vmaxvq_f32(vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3])));
}
FORGE_INLINE int32_t reduce_add(i32x16 x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[2]), vaddq_s32(x.v[1], x.v[3])));
}

FORGE_INLINE u8x64 load_bytes(const uint8_t* p) { FORGE_QUARTERS(u8x64, vld1q_u8(p + 16 * i)); }
FORGE_INLINE u8x64 low_nibbles(u8x64 x) { FORGE_QUARTERS(u8x64, vandq_u8(x.v[i], vdupq_n_u8(15))); }
FORGE_INLINE u8x64 high_nibbles(u8x64 x) { FORGE_QUARTERS(u8x64, vshrq_n_u8(x.v[i], 4)); }
// base | ((x shifted left by Shift, right if negative) & Mask), byte by byte; Mask has only bits that stay in their byte.
template <int Shift, int Mask>
FORGE_INLINE u8x64 merge_bits(u8x64 base, u8x64 x) {
    FORGE_QUARTERS(u8x64, vorrq_u8(base.v[i], vandq_u8(vshlq_u8(x.v[i], vdupq_n_s8(Shift)), vdupq_n_u8(Mask))));
}

#undef FORGE_QUARTERS

constexpr int kTileRows = 4;  // activation rows that one pass over a panel serves: of 32 registers, sums take 16
constexpr int kRowGroup = 1;  // rows whose integer sums are in flight together

// Weights of up to 7 bits are signed bytes as they are; those with offset 128 become so by flipping the top bit.
template <int N, int Bits, int Offset, int G>
FORGE_INLINE void dot_rows(i32x16 (&c)[G], const u8x64* w, const uint8_t* a, int stride, int sum_at) {
    static_assert(Bits <= 7 || (Bits == 8 && Offset == 128));
    for (int g = 0; g < G; ++g) {
        c[g] = splat_i32(Offset == 0 || Bits == 8 ? 0 : peek<int32_t>(a + g * stride + sum_at));
        for (int j = 0; j < N; ++j) {
            const int8x16_t q = vreinterpretq_s8_s32(vdupq_n_s32(peek<int32_t>(a + g * stride + 4 * j)));
            for (int i = 0; i < 4; ++i) {
                const uint8x16_t bytes = Bits == 8 ? veorq_u8(w[j].v[i], vdupq_n_u8(128)) : w[j].v[i];
                c[g].v[i] = vdotq_s32(c[g].v[i], vreinterpretq_s8_u8(bytes), q);
            }
        }
    }
}

// One step of a product of registers, and a value that the compiler can't foresee: for ceiling.cpp.
FORGE_INLINE void add_product(i32x16& c, u8x64 w, u8x64 a) {
    for (int i = 0; i < 4; ++i) c.v[i] = vdotq_s32(c.v[i], vreinterpretq_s8_u8(w.v[i]), vreinterpretq_s8_u8(a.v[i]));
}
FORGE_INLINE void hide(u8x64& x) { asm volatile("" : "+w"(x.v[0]), "+w"(x.v[1]), "+w"(x.v[2]), "+w"(x.v[3])); }

}  // namespace forge::FORGE_ISA
