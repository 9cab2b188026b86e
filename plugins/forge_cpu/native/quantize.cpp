// Activation rows to int8 blocks of 32 values with a scale, for one instruction set.
#include "kernels.hpp"
#include "layout.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {
namespace {

// Below this a block counts as zero: the reciprocal of its scale would overflow.
constexpr float kSmallest = 1e-30f;
constexpr float kNever = __builtin_huge_valf();

#if defined(FORGE_ISA_AVX512)
// In one store: the block's line is often in another core's cache, and many small stores would wait for it together.
FORGE_INLINE void write_block(i32x16 low, i32x16 high, float scale, ActivationBlock* out) {
    const __m256i q = _mm256_set_m128i(_mm512_cvtsepi32_epi8(high.v), _mm512_cvtsepi32_epi8(low.v));
    // The sum of each half's sixteen values, in all of its lanes.
    __m256i halves = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), q);
    halves = _mm256_add_epi32(halves, _mm256_shuffle_epi32(halves, 0x4E));
    halves = _mm256_add_epi32(halves, _mm256_shuffle_epi32(halves, 0xB1));
    const __m256i sum = _mm256_add_epi32(halves, _mm256_permute4x64_epi64(halves, 0x4E));
    const __m256i low_high = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 0, 0, 0, 0, 4, 0, 0));
    const __m256i products = _mm256_mullo_epi32(_mm256_blend_epi32(sum, low_high, 0x30),
                                                _mm256_setr_epi32(0, 0, -8, -128, -32, -32, 0, 0));
    const __m256 scales = _mm256_set1_ps(scale);
    const __m256 scaled = _mm256_blend_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(sum), scales), scales, 1);
    const __m256i rest = _mm256_blend_epi32(products, _mm256_castps_si256(scaled), 3);
    _mm512_store_si512(out, _mm512_inserti64x4(_mm512_castsi256_si512(q), rest, 1));
}
#else
FORGE_INLINE void write_block(i32x16 low, i32x16 high, float scale, ActivationBlock* out) {
    store_i8(out->q, low);
    store_i8(out->q + 16, high);
    const int32_t sum_low = reduce_add(low), sum_high = reduce_add(high), sum = sum_low + sum_high;
    out->scale = scale;
    out->scaled_sum = scale * static_cast<float>(sum);
    out->minus_8 = -8 * sum;
    out->minus_128 = -128 * sum;
    out->minus_32_low = -32 * sum_low;
    out->minus_32_high = -32 * sum_high;
    out->unused[0] = out->unused[1] = 0;
}
#endif

// The block's scale makes its largest magnitude 127; values round to nearest, ties to even. Returns whether the scale
// exceeds `above`; then low and high become what rounding lost.
FORGE_INLINE bool quantize_block(f32x16& low, f32x16& high, float above, ActivationBlock* out) {
    const float largest = reduce_max(max(abs(low), abs(high)));
    const bool vanishes = !(largest > kSmallest);
    const float scale = vanishes ? 0.f : largest / 127.f;
    const f32x16 inverse = splat(vanishes ? 0.f : 127.f / largest);
    const i32x16 q_low = round_to_int(low * inverse), q_high = round_to_int(high * inverse);
    const bool refined = scale > above;
    write_block(q_low, q_high, scale, out);
    if (!refined) return false;
    const f32x16 minus_scale = splat(-scale);
    low = fma(to_float(q_low), minus_scale, low);
    high = fma(to_float(q_high), minus_scale, high);
    return true;
}

// The scale above which a block of this row gets a second term. The same for every part of the row that is asked for.
float refined_above(const float* row, int64_t cols, const Rounding& rounding) {
    if (rounding.terms == 1) return kNever;
    if (rounding.loud == 0.f) return 0.f;
    f32x16 low = zero(), high = zero();
    for (int64_t k = 0; k < cols; k += kBlock) {
        low = low + abs(load(row + k));
        high = high + abs(load(row + k + 16));
    }
    return rounding.loud * reduce_add(low + high) / static_cast<float>(cols);
}

// A block, and what its rounding lost where that matters.
FORGE_INLINE void quantize_terms(const float* x, float above, const ActivationRow& to, int64_t b) {
    ActivationBlock* out = to.first + b * to.stride;
    f32x16 low = load(x), high = load(x + 16);
    const bool refined = quantize_block(low, high, above, out);
    if (to.refined != nullptr) to.refined[b * to.height] = refined;
    if (refined) quantize_block(low, high, kNever, out + to.height);
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
            for (int64_t b = first; b < last; ++b) quantize_terms(from + b * kBlock, above, to, b);
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
        for (int64_t b = 0; b < blocks; ++b) quantize_terms(from + b * kBlock, above, to, b);
    }
}

}  // namespace forge::FORGE_ISA
