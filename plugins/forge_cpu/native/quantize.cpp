// Activation rows to int8 blocks of 32 values with a scale, for one instruction set.
#include "kernels.hpp"
#include "layout.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {
namespace {

// Below this a block counts as zero: the reciprocal of its scale would overflow.
constexpr float kSmallest = 1e-30f;

// The block's scale makes its largest magnitude 127; values round to nearest, ties to even.
FORGE_INLINE void quantize_block(f32x16 low, f32x16 high, ActivationBlock* out) {
    const float largest = reduce_max(max(abs(low), abs(high)));
    const bool vanishes = !(largest > kSmallest);
    const float scale = vanishes ? 0.f : largest / 127.f;
    const f32x16 inverse = splat(vanishes ? 0.f : 127.f / largest);
    const i32x16 q_low = round_to_int(low * inverse), q_high = round_to_int(high * inverse);
    store_i8(out->q, q_low);
    store_i8(out->q + 16, q_high);
    const int32_t sum_low = reduce_add(q_low), sum_high = reduce_add(q_high), sum = sum_low + sum_high;
    out->scale = scale;
    out->scaled_sum = scale * static_cast<float>(sum);
    out->minus_8 = -8 * sum;
    out->minus_128 = -128 * sum;
    out->minus_32_low = -32 * sum_low;
    out->minus_32_high = -32 * sum_high;
    out->refined = 0;
    out->unused = 0;
}

// The scale above which a block of this row gets a second term. The same for every part of the row that is asked for.
float refined_above(const float* row, int64_t cols, const Rounding& rounding) {
    if (rounding.loud == 0.f) return 0.f;
    f32x16 sum = zero();
    for (int64_t k = 0; k < cols; k += 16) sum = sum + abs(load(row + k));
    return rounding.loud * reduce_add(sum) / static_cast<float>(cols);
}

// A block, and what its rounding lost where that matters.
FORGE_INLINE void quantize_terms(const float* x, const Rounding& rounding, float above, const ActivationRow& to, int64_t b) {
    ActivationBlock* out = to.first + b * to.stride;
    f32x16 low = load(x), high = load(x + 16);
    quantize_block(low, high, out);
    if (rounding.terms == 1 || !(out->scale > above)) return;
    out->refined = 1;
    const f32x16 scale = splat(-out->scale);
    low = fma(to_float(load_i8_i32(out->q)), scale, low);
    high = fma(to_float(load_i8_i32(out->q + 16)), scale, high);
    quantize_block(low, high, out + to.second);
}

}  // namespace

void quantize_rows(Worker& worker, const float* x, int64_t ldx, Activations& out) {
    const int64_t blocks = out.blocks_a_row();
    // Some microseconds of work a chunk; a row of a small model is one chunk.
    worker.share(out.rows * blocks, 64, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t row = begin / blocks, first = begin - row * blocks;
            const int64_t last = end - row * blocks < blocks ? end - row * blocks : blocks;
            const float* from = x + row * ldx;
            const ActivationRow to = out.row(row);
            const float above = refined_above(from, out.cols, out.rounding);
            for (int64_t b = first; b < last; ++b) quantize_terms(from + b * kBlock, out.rounding, above, to, b);
            begin += last - first;
        }
    });
}

void quantize_range(const float* x, Activations& out, int64_t begin, int64_t end) {
    const int64_t blocks = out.blocks_a_row();
    for (int64_t row = begin; row < end; ++row) {
        const float* from = x + row * out.cols;
        const ActivationRow to = out.row(row);
        const float above = refined_above(from, out.cols, out.rounding);
        for (int64_t b = 0; b < blocks; ++b) quantize_terms(from + b * kBlock, out.rounding, above, to, b);
    }
}

}  // namespace forge::FORGE_ISA
