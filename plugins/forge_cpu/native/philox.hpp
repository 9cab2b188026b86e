// The sampler's randomness: one uniform number as a pure function of (seed, choice, position).
// The same bits as forge.interfaces.sampler.uniforms; a test compares a million of them.
#pragma once

#include <cstdint>

namespace forge {

// Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as key and
// (position, choice, 0, 0) as counter; the upper 53 bits of its first two words, scaled to [0, 1).
// Static: every instruction set's object keeps its own copy.
static inline double philox_uniform(std::uint64_t seed, std::uint32_t choice, std::uint32_t position) {
    std::uint32_t c0 = position, c1 = choice, c2 = 0, c3 = 0;
    auto k0 = static_cast<std::uint32_t>(seed);
    auto k1 = static_cast<std::uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const std::uint64_t a = std::uint64_t{0xD2511F53} * c0;
        const std::uint64_t b = std::uint64_t{0xCD9E8D57} * c2;
        c0 = static_cast<std::uint32_t>(b >> 32) ^ c1 ^ k0;
        c1 = static_cast<std::uint32_t>(b);
        c2 = static_cast<std::uint32_t>(a >> 32) ^ c3 ^ k1;
        c3 = static_cast<std::uint32_t>(a);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    const std::uint64_t bits = ((std::uint64_t{c0} << 32) | c1) >> 11;
    return static_cast<double>(bits) * 0x1p-53;
}

}  // namespace forge
