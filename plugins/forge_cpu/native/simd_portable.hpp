// Plain C++ with GCC's and Clang's vector extension, for processors without a set of their own. Included by simd.hpp
// only. Correct anywhere, fast nowhere in particular.
#pragma once

namespace forge::FORGE_ISA {

typedef float float_vector __attribute__((vector_size(64)));
typedef int32_t int_vector __attribute__((vector_size(64)));
typedef uint32_t word_vector __attribute__((vector_size(64)));

struct f32x16 {
    float_vector v;
};
struct i32x16 {
    int_vector v;
};
struct u8x64 {
    word_vector v;  // byte i of a lane is (lane >> 8·i) & 255
};
struct mask16 {
    int_vector v;  // all ones or zero
};

FORGE_INLINE f32x16 zero() { return {float_vector{}}; }
FORGE_INLINE f32x16 splat(float x) { return {float_vector{} + x}; }
FORGE_INLINE f32x16 load(const float* p) { return {peek<float_vector>(p)}; }
FORGE_INLINE void store(float* p, f32x16 x) { std::memcpy(p, &x.v, sizeof x.v); }
// The first n <= 16 floats, the other lanes 0; nothing beyond them is touched.
FORGE_INLINE f32x16 load_partial(const float* p, int n) {
    f32x16 x = zero();
    for (int i = 0; i < n; ++i) x.v[i] = p[i];
    return x;
}
FORGE_INLINE void store_partial(float* p, f32x16 x, int n) {
    for (int i = 0; i < n; ++i) p[i] = x.v[i];
}

FORGE_INLINE float_vector as_float(int_vector bits) { return reinterpret_cast<float_vector>(bits); }
FORGE_INLINE int_vector as_bits(float_vector x) { return reinterpret_cast<int_vector>(x); }
FORGE_INLINE int_vector widen_u16(const uint16_t* p) {
    typedef uint16_t half_vector __attribute__((vector_size(32)));
    return __builtin_convertvector(peek<half_vector>(p), int_vector);
}
FORGE_INLINE void narrow_u16(uint16_t* p, int_vector x) {
    typedef uint16_t half_vector __attribute__((vector_size(32)));
    const half_vector narrow = __builtin_convertvector(x, half_vector);
    std::memcpy(p, &narrow, sizeof narrow);
}

// Subnormal halves are made by subtracting normal floats, so that flushing subnormals to zero doesn't lose them.
FORGE_INLINE f32x16 load_f16(const uint16_t* p) {
    const int_vector half = widen_u16(p);
    const int_vector magnitude = (half & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const int_vector rebased = magnitude + ((127 - 15) << 23);
    const int_vector infinite = rebased + ((128 - 16) << 23);
    const float_vector tiny = as_float(rebased + (1 << 23)) - as_float(int_vector{} + (113 << 23));
    const int_vector bits = exponent == 0x0f800000 ? infinite : exponent == 0 ? as_bits(tiny) : rebased;
    return {as_float(bits | ((half & 0x8000) << 16))};
}
// Rounds to nearest even; overflow becomes infinity, a NaN stays one.
FORGE_INLINE void store_f16(uint16_t* p, f32x16 x) {
    const int_vector bits = as_bits(x.v), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
    // Below 2^-14 halves are subnormal: adding 0.5 rounds to their spacing of 2^-24 and leaves them in the low bits.
    const int_vector tiny = as_bits(as_float(magnitude) + 0.5f) - (126 << 23);
    const int_vector normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
    const int_vector finite = magnitude < (113 << 23) ? tiny : normal;
    const int_vector huge = magnitude > 0x7f800000 ? int_vector{} + 0x7e00 : int_vector{} + 0x7c00;
    narrow_u16(p, sign | (magnitude >= (143 << 23) ? huge : finite));
}
FORGE_INLINE f32x16 load_bf16(const uint16_t* p) { return {as_float(widen_u16(p) << 16)}; }
// Rounds to nearest even; a NaN stays one.
FORGE_INLINE void store_bf16(uint16_t* p, f32x16 x) {
    const word_vector bits = reinterpret_cast<word_vector>(x.v);
    const word_vector rounded = bits + (((bits >> 16) & 1) + 0x7fff);
    const int_vector kept = x.v == x.v ? reinterpret_cast<int_vector>(rounded) : int_vector{} + 0x7fc00000;
    narrow_u16(p, (kept >> 16) & 0xffff);
}

FORGE_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {a.v + b.v}; }
FORGE_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {a.v - b.v}; }
FORGE_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {a.v * b.v}; }
FORGE_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {a.v / b.v}; }
FORGE_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {a.v * b.v + c.v}; }
FORGE_INLINE f32x16 min(f32x16 a, f32x16 b) { return {a.v < b.v ? a.v : b.v}; }
FORGE_INLINE f32x16 max(f32x16 a, f32x16 b) { return {a.v > b.v ? a.v : b.v}; }
FORGE_INLINE f32x16 abs(f32x16 a) { return {as_float(as_bits(a.v) & 0x7fffffff)}; }
FORGE_INLINE mask16 less(f32x16 a, f32x16 b) { return {a.v < b.v}; }
FORGE_INLINE f32x16 select(mask16 m, f32x16 yes, f32x16 no) { return {m.v ? yes.v : no.v}; }
FORGE_INLINE uint32_t bits(mask16 m) {
    uint32_t packed = 0;
    for (int i = 0; i < 16; ++i) packed |= static_cast<uint32_t>(m.v[i] & 1) << i;
    return packed;
}

FORGE_INLINE i32x16 splat_i32(int32_t x) { return {int_vector{} + x}; }
FORGE_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {a.v + b.v}; }
FORGE_INLINE i32x16 load_i32(const int32_t* p) { return {peek<int_vector>(p)}; }
FORGE_INLINE i32x16 load_u8_i32(const uint8_t* p) {
    i32x16 x;
    for (int i = 0; i < 16; ++i) x.v[i] = p[i];
    return x;
}
FORGE_INLINE i32x16 load_i8_i32(const int8_t* p) {
    i32x16 x;
    for (int i = 0; i < 16; ++i) x.v[i] = p[i];
    return x;
}
FORGE_INLINE void store_i8(int8_t* p, i32x16 x) {
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i] < -128 ? -128 : x.v[i] > 127 ? 127 : x.v[i]);
}
FORGE_INLINE f32x16 to_float(i32x16 x) { return {__builtin_convertvector(x.v, float_vector)}; }
FORGE_INLINE f32x16 load_i8(const int8_t* p) { return to_float(load_i8_i32(p)); }
// To nearest, ties to even, for |x| < 2^22: adding 1.5·2^23 leaves the integer in the low bits.
FORGE_INLINE i32x16 round_to_int(f32x16 x) { return {as_bits(x.v + 12582912.f) - 0x4b400000}; }
// x·2^n for a normal x and a result in the normal range.
FORGE_INLINE f32x16 scale_by_power_of_two(f32x16 x, i32x16 n) { return {as_float(as_bits(x.v) + (n.v << 23))}; }

FORGE_INLINE float reduce_add(f32x16 x) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] += x.v[i + half];
    return x.v[0];
}
FORGE_INLINE float reduce_max(f32x16 x) {
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
    return x.v[0];
}
FORGE_INLINE int32_t reduce_add(i32x16 x) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += x.v[i];
    return sum;
}

// Bytes of a lane by value, not by address, so that the order of bytes in memory doesn't matter elsewhere.
FORGE_INLINE u8x64 load_bytes(const uint8_t* p) {
    static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__);
    return {peek<word_vector>(p)};
}
FORGE_INLINE u8x64 low_nibbles(u8x64 x) { return {x.v & 0x0f0f0f0fu}; }
FORGE_INLINE u8x64 high_nibbles(u8x64 x) { return {(x.v >> 4) & 0x0f0f0f0fu}; }
// base | ((x shifted left by Shift, right if negative) & Mask), byte by byte; Mask has only bits that stay in their byte.
template <int Shift, int Mask>
FORGE_INLINE u8x64 merge_bits(u8x64 base, u8x64 x) {
    const word_vector moved = Shift >= 0 ? x.v << (Shift >= 0 ? Shift : 0) : x.v >> (Shift < 0 ? -Shift : 0);
    return {base.v | (moved & (static_cast<uint32_t>(Mask) * 0x01010101u))};
}

constexpr int kTileRows = 4;  // activation rows that one pass over a panel serves
constexpr int kRowGroup = 1;  // rows whose integer sums are in flight together

template <int N, int Bits, int Offset, int G>
FORGE_INLINE void dot_rows(i32x16 (&c)[G], const u8x64* w, const uint8_t* a, int stride, int sum_at) {
    for (int g = 0; g < G; ++g) {
        const auto* q = reinterpret_cast<const int8_t*>(a + g * stride);
        int_vector sum = int_vector{} + (Offset == 0 ? 0 : peek<int32_t>(a + g * stride + sum_at));
#pragma GCC unroll 1
        for (int j = 0; j < N; ++j)
            for (int i = 0; i < 4; ++i)
                sum += reinterpret_cast<int_vector>((w[j].v >> (8 * i)) & 255u) * static_cast<int32_t>(q[4 * j + i]);
        c[g].v = sum;
    }
}

// One step of a product of registers, and a value that the compiler can't foresee: for ceiling.cpp.
FORGE_INLINE void add_product(i32x16& c, u8x64 w, u8x64 a) {
    for (int i = 0; i < 4; ++i)
        c.v += reinterpret_cast<int_vector>(((w.v >> (8 * i)) & 255u) * ((a.v >> (8 * i)) & 255u));
}
FORGE_INLINE void hide(u8x64& x) { asm volatile("" : "+m"(x.v)); }

}  // namespace forge::FORGE_ISA
