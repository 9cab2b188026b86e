// Which tokens top-k and top-p keep, without sorting: a radix search over the bits of non-negative floats, whose order
// as integers is their order as numbers. Included by sample.cpp only.
//
// Both filters keep the first tokens of the order (weight descending, id ascending). Such a prefix is a threshold and a
// number of ties: all weights above the threshold, and of those equal to it the ones with the lowest ids.
#pragma once

#include <cstdint>

#include "simd.hpp"

namespace forge::FORGE_ISA {

struct Prefix {
    uint32_t threshold;  // bits of the smallest weight kept
    int64_t ties;        // how many of those equal to it
    double mass;         // Σ of all weights kept
};

constexpr int kRadixBits = 11;
constexpr int kRadix = 1 << kRadixBits;

struct Histogram {
    int64_t count[kRadix];
    double mass[kRadix];
};

// Of `n` weights in ascending order of ids: the shortest prefix that has at least `most` tokens or reaches `mass`.
// Everything, where none does. Weights are in (0, 1].
static Prefix find_prefix(const float* weights, int64_t n, int64_t most, double mass, Histogram& histogram) {
    uint32_t low = 0;        // the search is among weights whose bits are in [low, low + 2^width)
    int width = 30;          // 1.0 is 0x3f800000
    int64_t above = 0;       // those beyond that range, and their mass
    double above_mass = 0;
    while (width > 0) {
        const int shift = width > kRadixBits ? width - kRadixBits : 0;
        for (int i = 0; i < kRadix; ++i) histogram.count[i] = 0;
        for (int i = 0; i < kRadix; ++i) histogram.mass[i] = 0;
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t from_low = peek<uint32_t>(weights + i) - low;
            if (from_low >> width) continue;
            ++histogram.count[from_low >> shift];
            histogram.mass[from_low >> shift] += static_cast<double>(weights[i]);
        }
        int bin = (1 << (width - shift)) - 1;
        int lowest = bin;  // the last that isn't empty: where the search ends if no prefix is long enough
        double lowest_mass = above_mass;
        int64_t lowest_above = above;
        for (; bin >= 0; --bin) {
            if (histogram.count[bin] == 0) continue;
            lowest = bin, lowest_mass = above_mass, lowest_above = above;
            if (above + histogram.count[bin] >= most || above_mass + histogram.mass[bin] >= mass) break;
            above += histogram.count[bin];
            above_mass += histogram.mass[bin];
        }
        above = lowest_above, above_mass = lowest_mass;
        low += static_cast<uint32_t>(lowest) << shift;
        width = shift;
        if (width == 0) {
            const float value = peek<float>(&low);
            const int64_t there = histogram.count[lowest];
            const double missing = (mass - above_mass) / static_cast<double>(value);
            int64_t ties = missing < static_cast<double>(there) ? static_cast<int64_t>(missing) : there;
            if (static_cast<double>(ties) * static_cast<double>(value) + above_mass < mass) ++ties;
            if (ties > most - above) ties = most - above;
            if (ties < 1) ties = 1;
            if (ties > there) ties = there;
            return {low, ties, above_mass + static_cast<double>(ties) * static_cast<double>(value)};
        }
    }
    return {0, n, above_mass};
}

// Whether `a` keeps fewer tokens than `b`.
FORGE_INLINE bool shorter(const Prefix& a, const Prefix& b) {
    return a.threshold > b.threshold || (a.threshold == b.threshold && a.ties < b.ties);
}

}  // namespace forge::FORGE_ISA
