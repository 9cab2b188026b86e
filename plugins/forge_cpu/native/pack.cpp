// From the blocks of a GGUF file to the layout of layout.hpp. The file's formats are specified by ggml
// (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md names them; gguf-py's quants.py defines them in Python).
//
// Bytes are moved four inputs at a time: a word of a row becomes a lane of a vector.
#include <cstring>

#include "matrix.hpp"

namespace forge {
namespace {

constexpr uint32_t kLowNibbles = 0x0f0f0f0f;

uint32_t word_at(const uint8_t* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}
void put_word(uint8_t* p, uint32_t word) { std::memcpy(p, &word, sizeof word); }
void put_half(uint8_t* p, const uint8_t* half) { std::memcpy(p, half, 2); }

// In Q4_0 and Q4_1 inputs l and l + 16 share byte l, as they do in a panel.
void pack_q4_0(const uint8_t* block, int64_t b, int r, uint8_t* group) {
    const int64_t half = b % 2;
    for (int j = 0; j < 4; ++j) put_word(group + 256 * half + 64 * j + 4 * r, word_at(block + 2 + 4 * j));
    put_half(group + 512 + 32 * half + 2 * r, block);
}

void pack_q4_1(const uint8_t* block, int r, uint8_t* group) {
    for (int j = 0; j < 4; ++j) put_word(group + 64 * j + 4 * r, word_at(block + 4 + 4 * j));
    put_half(group + 256 + 2 * r, block);
    put_half(group + 288 + 2 * r, block + 2);
}

void pack_q8_0(const uint8_t* block, int64_t b, int r, uint8_t* group) {
    const int64_t half = b % 2;
    for (int j = 0; j < 8; ++j) put_word(group + 512 * half + 64 * j + 4 * r, word_at(block + 2 + 4 * j) ^ 0x80808080u);
    put_half(group + 1024 + 32 * half + 2 * r, block);
}

// Eight scales and eight minima of 6 bits in 12 bytes: the first four of each lie in the low bits of bytes 0-3 and 4-7,
// the last four in the nibbles of bytes 8-11 with their two top bits above the first ones.
void unpack_six_bits(const uint8_t* packed, uint8_t* scales, uint8_t* minima) {
    for (int j = 0; j < 4; ++j) {
        scales[j] = packed[j] & 63;
        minima[j] = packed[j + 4] & 63;
        scales[j + 4] = static_cast<uint8_t>((packed[j + 8] & 15) | (packed[j] >> 6 << 4));
        minima[j + 4] = static_cast<uint8_t>((packed[j + 8] >> 4) | (packed[j + 4] >> 6 << 4));
    }
}

// Byte l of the 32 behind `qs` holds input l of two blocks: the even one in its low nibble, the odd one in its high one.
void pack_nibble_block(const uint8_t* qs, bool odd, int r, uint8_t* vectors) {
    const int shift = odd ? 4 : 0;
    for (int j = 0; j < 4; ++j) {
        const uint32_t low = (word_at(qs + 4 * j) >> shift) & kLowNibbles;
        const uint32_t high = (word_at(qs + 16 + 4 * j) >> shift) & kLowNibbles;
        put_word(vectors + 64 * j + 4 * r, low | (high << 4));
    }
}

void pack_k_scales(const uint8_t* block, int r, uint8_t* scales_at, uint8_t* minima_at, uint8_t* d_at) {
    uint8_t scales[8], minima[8];
    unpack_six_bits(block + 4, scales, minima);
    for (int s = 0; s < 8; ++s) {
        scales_at[16 * s + r] = scales[s];
        minima_at[16 * s + r] = minima[s];
    }
    put_half(d_at + 2 * r, block);
    put_half(d_at + 32 + 2 * r, block + 2);
}

void pack_q4_k(const uint8_t* block, int r, uint8_t* group) {
    for (int s = 0; s < 8; ++s) pack_nibble_block(block + 16 + 32 * (s / 2), s % 2 != 0, r, group + 256 * s);
    pack_k_scales(block, r, group + kQ4kScales, group + kQ4kMinima, group + kQ4kD);
}

// The fifth bit of input l of block s is bit s of byte l.
void pack_q5_k(const uint8_t* block, int r, uint8_t* group) {
    const uint8_t* fifth = block + 16;
    for (int s = 0; s < 8; ++s) {
        pack_nibble_block(block + 48 + 32 * (s / 2), s % 2 != 0, r, group + 256 * s);
        uint32_t bits = 0;
        for (int j = 0; j < 8; ++j) bits |= ((word_at(fifth + 4 * j) >> s) & 0x01010101u) << j;
        put_word(group + kQ5kHigh + 64 * s + 4 * r, bits);
    }
    pack_k_scales(block, r, group + kQ5kScales, group + kQ5kMinima, group + kQ5kD);
}

// Blocks 0 to 3 use the first 64 bytes of low nibbles and the first 32 of high bits, blocks 4 to 7 the others. Within
// such a half, blocks 0 and 1 are the low nibbles of bytes 0-31 and 32-63, blocks 2 and 3 the high ones; block s has
// bits 2s and 2s + 1 of the high bytes.
void pack_q6_k(const uint8_t* block, int r, uint8_t* group) {
    for (int s = 0; s < 8; ++s) {
        const uint8_t* low = block + 64 * (s / 4) + 32 * (s % 2);
        const uint8_t* high = block + 128 + 32 * (s / 4);
        pack_nibble_block(low, s % 4 >= 2, r, group + 256 * s);
        for (int t = 0; t < 2; ++t) {
            uint32_t bits = 0;
            for (int u = 0; u < 4; ++u)
                bits |= ((word_at(high + 16 * t + 4 * u) >> (2 * (s % 4))) & 0x03030303u) << (2 * u);
            put_word(group + kQ6kHigh + 128 * s + 64 * t + 4 * r, bits);
        }
        group[kQ6kScales + 32 * s + r] = block[192 + 2 * s];
        group[kQ6kScales + 32 * s + 16 + r] = block[192 + 2 * s + 1];
    }
    put_half(group + kQ6kD + 2 * r, block + 208);
}

void pack_quantised_row(Encoding encoding, int64_t blocks, const uint8_t* from, int r, uint8_t* panel) {
    const EncodingInfo& info = kEncodingInfo[static_cast<int>(encoding)];
    for (int64_t b = 0; b < blocks; ++b) {
        const uint8_t* block = from + b * info.file_bytes;
        uint8_t* group = panel + b * info.file_block / info.group * info.group_bytes;
        switch (encoding) {
            case Encoding::q4_0: pack_q4_0(block, b, r, group); break;
            case Encoding::q4_1: pack_q4_1(block, r, group); break;
            case Encoding::q8_0: pack_q8_0(block, b, r, group); break;
            case Encoding::q4_k: pack_q4_k(block, r, group); break;
            case Encoding::q5_k: pack_q5_k(block, r, group); break;
            default: pack_q6_k(block, r, group); break;
        }
    }
}

}  // namespace

void pack_panel(Encoding encoding, int64_t cols, const uint8_t* rows, int64_t stride, int count, uint8_t* panel) {
    const EncodingInfo& info = kEncodingInfo[static_cast<int>(encoding)];
    for (int r = 0; r < count; ++r) {
        const uint8_t* from = rows + r * stride;
        if (info.quantised) {
            pack_quantised_row(encoding, cols / info.file_block, from, r, panel);
        } else if (encoding == Encoding::f32) {
            for (int64_t k = 0; k < cols; ++k) put_word(panel + 64 * k + 4 * r, word_at(from + 4 * k));
        } else {
            for (int64_t k = 0; k < cols; ++k) put_half(panel + 32 * k + 2 * r, from + 2 * k);
        }
    }
}

}  // namespace forge
