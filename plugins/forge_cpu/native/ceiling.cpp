// The peak of the integer units as a kernel could use them at best: the benchmarks' yardstick.
#include "kernels.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

double dot_ceiling(int64_t rounds, int32_t* sink) {
    constexpr int kVectors = 8;
    uint8_t weights[64 * kVectors], activations[4 * kVectors * kRowGroup];
    for (int i = 0; i < 64 * kVectors; ++i) weights[i] = static_cast<uint8_t>(i % 15);
    for (int i = 0; i < 4 * kVectors * kRowGroup; ++i) activations[i] = static_cast<uint8_t>(i % 7);
    u8x64 w[kVectors];
    for (int j = 0; j < kVectors; ++j) w[j] = load_bytes(weights + 64 * j);
    i32x16 total[kRowGroup];
    for (i32x16& sum : total) sum = splat_i32(0);
    for (int64_t round = 0; round < rounds; ++round) {
        i32x16 sums[kRowGroup];
        dot_rows<kVectors, 4, 0>(sums, w, activations, 4 * kVectors, 0);
        for (int g = 0; g < kRowGroup; ++g) total[g] = total[g] + sums[g];
        asm volatile("" : : "r"(activations) : "memory");   // activations are loaded in every round, as in a kernel
    }
    int32_t all = 0;
    for (const i32x16& sum : total) all += reduce_add(sum);
    *sink = all;
    return 2.0 * 64 * kVectors * kRowGroup * static_cast<double>(rounds);
}

}  // namespace forge::FORGE_ISA
