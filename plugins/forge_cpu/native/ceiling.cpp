// The peaks of the integer and of the float units, from registers alone: the benchmarks' yardsticks. On AVX2 without VNNI
// a kernel can pass the first by a little, since it widens the sums of several products at once.
#include "kernels.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

double dot_ceiling(int64_t rounds, int32_t* sink) {
    // As many sums as hide an instruction's latency and still fit the registers.
    constexpr int kSums = kTileRows;
    uint8_t bytes[64];
    for (int i = 0; i < 64; ++i) bytes[i] = static_cast<uint8_t>(i % 7);
    u8x64 w = load_bytes(bytes), a = w;
    i32x16 sums[kSums];
    for (i32x16& sum : sums) sum = splat_i32(0);
    for (int64_t round = 0; round < rounds; ++round) {
        hide(w);
        hide(a);
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) add_product(sums[i], w, a);
    }
    int32_t all = 0;
    for (const i32x16& sum : sums) all ^= reduce_add(sum);
    *sink = all;
    return 2.0 * 64 * kSums * static_cast<double>(rounds);
}

double fma_ceiling(int64_t rounds, float* sink) {
    constexpr int kSums = kTileRows;
    const f32x16 factor = splat(0.5f), term = splat(1.f);  // the sums stay below 2
    f32x16 sums[kSums];
    for (f32x16& sum : sums) sum = zero();
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
        for (int i = 0; i < kSums; ++i) sums[i] = fma(sums[i], factor, term);
    }
    *sink = 0;
    for (const f32x16& sum : sums) *sink += reduce_add(sum);
    return 2.0 * 16 * kSums * static_cast<double>(rounds);
}

}  // namespace forge::FORGE_ISA
