// How packed weights and quantised activations lie in memory: what pack.cpp writes and the linear kernels read.
//
// Weights: panels of 16 output rows, one after the other. A panel is a sequence of groups of `group` inputs, and a
// group holds, for each 32 inputs ("block"), eight 64-byte vectors of which lane r (4 bytes) belongs to output row r and
// vector j to inputs 4j..4j+3. Nibbles of vectors j and j + 4 share a byte, low and high. Scales stay as the file has
// them (f16, 6 or 8 bits), 16 rows side by side. Every group is a multiple of 64 bytes.
//
//   encoding  group  bytes                     contents, in order
//   Q4_0       64     576   4.5  bits a weight  2 × 256 nibbles | 2 × 16 f16 scale                      w = d·(q - 8)
//   Q4_1       32     320   5.0                 256 nibbles | 16 f16 scale | 16 f16 minimum             w = d·q + m
//   Q8_0       64    1088   8.5                 2 × 512 bytes, offset 128 | 2 × 16 f16 scale            w = d·(q - 128)
//   Q4_K      256    2368   4.625               8 × 256 nibbles | 8 × 16 scale | 8 × 16 minimum | d, dmin
//   Q5_K      256    2880   5.625               the same with 8 × 64 bytes of fifth bits behind the nibbles
//   Q6_K      256    3392   6.625               8 × 256 nibbles | 8 × 128 of two bits | 16 × 16 scale | d | 32 unused
//   F16, BF16   2      64  16                   16 rows of input k, then of k + 1
//   F32         1      64  32
//
// Fifth bits: bit j of byte 4r + i belongs to input 4j + i. Q6_K's two high bits: vector t of 64 bytes serves inputs 16t
// to 16t + 15; bits 2u and 2u + 1 of byte 4r + i belong to input 16t + 4u + i.
#pragma once

#include <cstdint>

namespace forge {

constexpr int kPanelRows = 16;
constexpr int kBlock = 32;

enum class Encoding : uint8_t { q4_0, q4_1, q8_0, q4_k, q5_k, q6_k, f16, bf16, f32 };
constexpr int kEncodings = 9;

struct EncodingInfo {
    const char* name;  // as GGUF has it
    int file_block;    // inputs a block of the file
    int file_bytes;    // bytes a block of the file
    int group;         // inputs a packed group
    int group_bytes;   // bytes of a packed group, 16 rows
    bool quantised;    // multiplied with int8 activations
};

constexpr EncodingInfo kEncodingInfo[kEncodings] = {
    {"Q4_0", 32, 18, 64, 576, true},     {"Q4_1", 32, 20, 32, 320, true},     {"Q8_0", 32, 34, 64, 1088, true},
    {"Q4_K", 256, 144, 256, 2368, true}, {"Q5_K", 256, 176, 256, 2880, true}, {"Q6_K", 256, 210, 256, 3392, true},
    {"F16", 1, 2, 2, 64, false},         {"BF16", 1, 2, 2, 64, false},        {"F32", 1, 4, 1, 64, false},
};

// Offsets inside the groups of the k-quants.
constexpr int kQ4kScales = 2048, kQ4kMinima = 2176, kQ4kD = 2304, kQ4kDmin = 2336;
constexpr int kQ5kHigh = 2048, kQ5kScales = 2560, kQ5kMinima = 2688, kQ5kD = 2816, kQ5kDmin = 2848;
constexpr int kQ6kHigh = 2048, kQ6kScales = 3072, kQ6kD = 3328;

// A run of output rows in one encoding.
struct Segment {
    Encoding encoding;
    int64_t rows;
    int64_t first_row;    // of the matrix
    int64_t first_panel;  // of the matrix
    int64_t panels;
    int64_t panel_bytes;
    uint8_t* data;
};

// Weights as kernels see them; Matrix (matrix.hpp) owns the memory.
struct MatrixView {
    const Segment* segments;
    int count;
    int64_t rows, cols, panels;
    bool any_quantised;
};

// 32 inputs of one activation row, as int8: x ≈ scale·q. One cache line, so that a kernel walks a single pointer.
// With two terms a second block may hold what the first one's rounding lost, so that values have some 15 bits.
struct alignas(64) ActivationBlock {
    int8_t q[kBlock];  // in [-127, 127]
    float scale;
    float scaled_sum;  // scale·Σq, which minima multiply
    int32_t minus_8;   // -8·Σq and so on: what weights stored with an offset have to start from
    int32_t minus_128;
    int32_t minus_32_low;  // of the first 16 and the last 16 values
    int32_t minus_32_high;
    int32_t unused[2];
};
static_assert(sizeof(ActivationBlock) == 64);

// The blocks of one activation row: first[b * stride], its second term, if refined[b * height] is 1, at
// first[b * stride + height]. refined: null with one term.
struct ActivationRow {
    ActivationBlock* first;
    uint8_t* refined;
    int64_t stride, height;
};

// How finely activations are rounded. A block has a second term if its scale exceeds `loud` times the mean magnitude of
// its row's values: a function of the row alone, so that results don't depend on other rows.
struct Rounding {
    int64_t terms;  // 1 or 2
    float loud;     // 0: all that isn't zero

    // Whether 8 bits are enough for some: then they are for attention's operands too.
    __attribute__((always_inline)) bool coarse() const { return terms == 1 || loud > 0.f; }
};

// Quantised activation rows, in tiles of nearly equal height: for each 32 columns a tile holds its rows' first terms side
// by side, then room for their second ones, of which `refined` says in the same order whether they're there (1 or 0).
// The memory is the caller's: activation_bytes() of it, aligned to 64. Columns are a multiple of 32.
struct Activations {
    ActivationBlock* blocks;
    uint8_t* refined;  // null with one term; 16 bytes may be read from any of them
    int64_t rows, cols;
    int64_t tiles;  // of rows / tiles rows each, and one more in the first rows % tiles
    Rounding rounding;

    // Trivial, and always inline: these are compiled into every instruction set's kernels.
    __attribute__((always_inline)) int64_t blocks_a_row() const { return cols / kBlock; }
    __attribute__((always_inline)) int64_t tile_begin(int64_t tile) const {
        const int64_t extra = rows % tiles;
        return tile * (rows / tiles) + (tile < extra ? tile : extra);
    }
    __attribute__((always_inline)) ActivationBlock* tile_blocks(int64_t tile) const {
        return blocks + tile_begin(tile) * rounding.terms * blocks_a_row();
    }
    __attribute__((always_inline)) uint8_t* tile_refined(int64_t tile) const {
        return refined ? refined + tile_begin(tile) * blocks_a_row() : nullptr;
    }
    __attribute__((always_inline)) ActivationRow row(int64_t row) const {
        const int64_t height = rows / tiles, tall = rows % tiles * (height + 1);
        const int64_t tile = row < tall ? row / (height + 1) : rows % tiles + (row - tall) / height;
        const int64_t begin = tile_begin(tile), rows_here = tile_begin(tile + 1) - begin;
        return {tile_blocks(tile) + (row - begin), refined ? tile_refined(tile) + (row - begin) : nullptr,
                rows_here * rounding.terms, rows_here};
    }
};

__attribute__((always_inline)) inline int64_t activation_bytes(int64_t rows, int64_t cols, int64_t terms) {
    const int64_t blocks = rows * (cols / kBlock), marks = terms == 1 ? 0 : blocks + 16;
    return blocks * terms * static_cast<int64_t>(sizeof(ActivationBlock)) + (marks + 63) / 64 * 64;
}
// tile_rows: the most rows that a tile has, 16 at most.
__attribute__((always_inline)) inline Activations activations_in(void* memory, int64_t rows, int64_t cols,
                                                                 int64_t tile_rows, Rounding rounding) {
    const int64_t tiles = rows > 0 ? (rows + tile_rows - 1) / tile_rows : 1;
    auto* blocks = static_cast<ActivationBlock*>(memory);
    auto* refined = reinterpret_cast<uint8_t*>(blocks + rows * (cols / kBlock) * rounding.terms);
    return {blocks, rounding.terms == 1 ? nullptr : refined, rows, cols, tiles, rounding};
}

}  // namespace forge
