// From the packed layout back to floats: for embeddings, for tests, for whatever a kernel declines.
#include <bit>
#include <cmath>
#include <cstring>

#include "matrix.hpp"

namespace forge {
namespace {

float half_at(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, sizeof half);
    const int exponent = (half >> 10) & 31, fraction = half & 1023;
    uint32_t bits = 0;
    if (exponent == 31)
        bits = 0x7f800000u | static_cast<uint32_t>(fraction) << 13;
    else if (exponent != 0)
        bits = static_cast<uint32_t>(exponent + 112) << 23 | static_cast<uint32_t>(fraction) << 13;
    else
        bits = std::bit_cast<uint32_t>(static_cast<float>(fraction) * 0x1p-24f);
    return std::bit_cast<float>(bits | static_cast<uint32_t>(half & 0x8000) << 16);
}

float bfloat_at(const uint8_t* p) {
    uint16_t half;
    std::memcpy(&half, p, sizeof half);
    return std::bit_cast<float>(static_cast<uint32_t>(half) << 16);
}

int nibble(const uint8_t* vectors, int r, int l) {
    const int byte = vectors[64 * (l % 16 / 4) + 4 * r + l % 4];
    return l < 16 ? byte & 15 : byte >> 4;
}

void unpack_k_quant(const uint8_t* group, int r, bool fifth, float* out) {
    const float d = half_at(group + (fifth ? kQ5kD : kQ4kD) + 2 * r);
    const float dmin = half_at(group + (fifth ? kQ5kDmin : kQ4kDmin) + 2 * r);
    for (int s = 0; s < 8; ++s) {
        const float scale = d * static_cast<float>(group[(fifth ? kQ5kScales : kQ4kScales) + 16 * s + r]);
        const float minimum = dmin * static_cast<float>(group[(fifth ? kQ5kMinima : kQ4kMinima) + 16 * s + r]);
        for (int l = 0; l < 32; ++l) {
            int q = nibble(group + 256 * s, r, l);
            if (fifth) q |= (group[kQ5kHigh + 64 * s + 4 * r + l % 4] >> (l / 4) & 1) << 4;
            out[32 * s + l] = scale * static_cast<float>(q) - minimum;
        }
    }
}

void unpack_q6_k(const uint8_t* group, int r, float* out) {
    const float d = half_at(group + kQ6kD + 2 * r);
    for (int s = 0; s < 8; ++s)
        for (int l = 0; l < 32; ++l) {
            const auto* scales = reinterpret_cast<const int8_t*>(group + kQ6kScales + 32 * s);
            const int t = l / 16, u = l % 16 / 4;
            const int high = group[kQ6kHigh + 128 * s + 64 * t + 4 * r + l % 4] >> (2 * u) & 3;
            const int q = (nibble(group + 256 * s, r, l) | high << 4) - 32;
            out[32 * s + l] = d * static_cast<float>(scales[16 * t + r]) * static_cast<float>(q);
        }
}

// The group's inputs, or those of them that exist.
void unpack_group(Encoding encoding, const uint8_t* group, int r, int64_t left, float* out) {
    switch (encoding) {
        case Encoding::q4_0:
            for (int half = 0; half < 2 && 32 * half < left; ++half)
                for (int l = 0; l < 32; ++l)
                    out[32 * half + l] = half_at(group + 512 + 32 * half + 2 * r) *
                                         static_cast<float>(nibble(group + 256 * half, r, l) - 8);
            break;
        case Encoding::q4_1:
            for (int l = 0; l < 32; ++l)
                out[l] = half_at(group + 256 + 2 * r) * static_cast<float>(nibble(group, r, l)) +
                         half_at(group + 288 + 2 * r);
            break;
        case Encoding::q8_0:
            for (int half = 0; half < 2 && 32 * half < left; ++half)
                for (int l = 0; l < 32; ++l)
                    out[32 * half + l] = half_at(group + 1024 + 32 * half + 2 * r) *
                                         static_cast<float>(group[512 * half + 64 * (l / 4) + 4 * r + l % 4] - 128);
            break;
        case Encoding::q4_k: unpack_k_quant(group, r, false, out); break;
        case Encoding::q5_k: unpack_k_quant(group, r, true, out); break;
        case Encoding::q6_k: unpack_q6_k(group, r, out); break;
        case Encoding::f16:
        case Encoding::bf16:
            for (int i = 0; i < 2 && i < left; ++i)
                out[i] =
                    encoding == Encoding::f16 ? half_at(group + 32 * i + 2 * r) : bfloat_at(group + 32 * i + 2 * r);
            break;
        case Encoding::f32: std::memcpy(out, group + 4 * r, 4); break;
    }
}

}  // namespace

void unpack_row(Encoding encoding, int64_t cols, const uint8_t* panel, int r, float* out) {
    const EncodingInfo& info = kEncodingInfo[static_cast<int>(encoding)];
    for (int64_t k = 0; k < cols; k += info.group, panel += info.group_bytes)
        unpack_group(encoding, panel, r, cols - k, out + k);
}

}  // namespace forge
