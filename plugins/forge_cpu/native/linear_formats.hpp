// How a kernel reads 32 inputs of a panel, per encoding. Included by linear.cpp only.
//
// Each format has: kBlocks, blocks a group; kBytes, bytes of a group; kBits and kOffset of its unsigned integers; kSum,
// where an activation block holds -kOffset·Σq; kMinimum, whether weights have an additive part; kHalves, whether 16
// inputs, not 32, share a scale. head() reads what a whole group shares, decode() one block.
#pragma once

#include <cstddef>

#include "layout.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

struct Decoded {
    u8x64 w[8];
    f32x16 scale, second_scale, minimum;
};

struct NoHead {};

FORGE_INLINE void unpack_nibbles(const uint8_t* p, u8x64* w) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
        const u8x64 both = load_bytes(p + 64 * j);
        w[j] = low_nibbles(both);
        w[j + 4] = high_nibbles(both);
    }
}

struct FormatQ4_0 {
    static constexpr int kBlocks = 2, kBytes = 576, kBits = 4, kOffset = 8;
    static constexpr int kSum = offsetof(ActivationBlock, minus_8);
    static constexpr bool kMinimum = false, kHalves = false;
    using Head = NoHead;
    FORGE_INLINE Head head(const uint8_t*) { return {}; }
    FORGE_INLINE void decode(const uint8_t* group, const Head&, int s, Decoded& out) {
        unpack_nibbles(group + 256 * s, out.w);
        out.scale = load_f16(reinterpret_cast<const uint16_t*>(group + 512 + 32 * s));
    }
};

struct FormatQ4_1 {
    static constexpr int kBlocks = 1, kBytes = 320, kBits = 4, kOffset = 0, kSum = 0;
    static constexpr bool kMinimum = true, kHalves = false;
    using Head = NoHead;
    FORGE_INLINE Head head(const uint8_t*) { return {}; }
    FORGE_INLINE void decode(const uint8_t* group, const Head&, int, Decoded& out) {
        unpack_nibbles(group, out.w);
        out.scale = load_f16(reinterpret_cast<const uint16_t*>(group + 256));
        out.minimum = load_f16(reinterpret_cast<const uint16_t*>(group + 288));
    }
};

struct FormatQ8_0 {
    static constexpr int kBlocks = 2, kBytes = 1088, kBits = 8, kOffset = 128;
    static constexpr int kSum = offsetof(ActivationBlock, minus_128);
    static constexpr bool kMinimum = false, kHalves = false;
    using Head = NoHead;
    FORGE_INLINE Head head(const uint8_t*) { return {}; }
    FORGE_INLINE void decode(const uint8_t* group, const Head&, int s, Decoded& out) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) out.w[j] = load_bytes(group + 512 * s + 64 * j);
        out.scale = load_f16(reinterpret_cast<const uint16_t*>(group + 1024 + 32 * s));
    }
};

struct KQuantHead {
    f32x16 d, minus_dmin;
};

struct FormatQ4_K {
    static constexpr int kBlocks = 8, kBytes = 2368, kBits = 4, kOffset = 0, kSum = 0;
    static constexpr bool kMinimum = true, kHalves = false;
    using Head = KQuantHead;
    FORGE_INLINE Head head(const uint8_t* group) {
        return {load_f16(reinterpret_cast<const uint16_t*>(group + kQ4kD)),
                -load_f16(reinterpret_cast<const uint16_t*>(group + kQ4kDmin))};
    }
    FORGE_INLINE void decode(const uint8_t* group, const Head& head, int s, Decoded& out) {
        unpack_nibbles(group + 256 * s, out.w);
        out.scale = head.d * to_float(load_u8_i32(group + kQ4kScales + 16 * s));
        out.minimum = head.minus_dmin * to_float(load_u8_i32(group + kQ4kMinima + 16 * s));
    }
};

struct FormatQ5_K {
    static constexpr int kBlocks = 8, kBytes = 2880, kBits = 5, kOffset = 0, kSum = 0;
    static constexpr bool kMinimum = true, kHalves = false;
    using Head = KQuantHead;
    FORGE_INLINE Head head(const uint8_t* group) {
        return {load_f16(reinterpret_cast<const uint16_t*>(group + kQ5kD)),
                -load_f16(reinterpret_cast<const uint16_t*>(group + kQ5kDmin))};
    }
    FORGE_INLINE void decode(const uint8_t* group, const Head& head, int s, Decoded& out) {
        unpack_nibbles(group + 256 * s, out.w);
        const u8x64 fifth = load_bytes(group + kQ5kHigh + 64 * s);
        out.w[0] = merge_bits<4, 16>(out.w[0], fifth);
        out.w[1] = merge_bits<3, 16>(out.w[1], fifth);
        out.w[2] = merge_bits<2, 16>(out.w[2], fifth);
        out.w[3] = merge_bits<1, 16>(out.w[3], fifth);
        out.w[4] = merge_bits<0, 16>(out.w[4], fifth);
        out.w[5] = merge_bits<-1, 16>(out.w[5], fifth);
        out.w[6] = merge_bits<-2, 16>(out.w[6], fifth);
        out.w[7] = merge_bits<-3, 16>(out.w[7], fifth);
        out.scale = head.d * to_float(load_u8_i32(group + kQ5kScales + 16 * s));
        out.minimum = head.minus_dmin * to_float(load_u8_i32(group + kQ5kMinima + 16 * s));
    }
};

struct FormatQ6_K {
    static constexpr int kBlocks = 8, kBytes = 3392, kBits = 6, kOffset = 32;
    static constexpr int kSum = offsetof(ActivationBlock, minus_32_low);
    static constexpr bool kMinimum = false, kHalves = true;
    struct Head {
        f32x16 d;
    };
    FORGE_INLINE Head head(const uint8_t* group) {
        return {load_f16(reinterpret_cast<const uint16_t*>(group + kQ6kD))};
    }
    FORGE_INLINE void decode(const uint8_t* group, const Head& head, int s, Decoded& out) {
        unpack_nibbles(group + 256 * s, out.w);
#pragma GCC unroll 2
        for (int t = 0; t < 2; ++t) {
            const u8x64 high = load_bytes(group + kQ6kHigh + 128 * s + 64 * t);
            u8x64* w = out.w + 4 * t;
            w[0] = merge_bits<4, 48>(w[0], high);
            w[1] = merge_bits<2, 48>(w[1], high);
            w[2] = merge_bits<0, 48>(w[2], high);
            w[3] = merge_bits<-2, 48>(w[3], high);
        }
        const auto* scales = reinterpret_cast<const int8_t*>(group + kQ6kScales + 32 * s);
        out.scale = head.d * to_float(load_i8_i32(scales));
        out.second_scale = head.d * to_float(load_i8_i32(scales + 16));
    }
};

}  // namespace forge::FORGE_ISA
