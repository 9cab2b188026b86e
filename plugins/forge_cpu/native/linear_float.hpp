// Kernels for weights in F16, BF16 and F32, which multiply float activations. Included by linear.cpp only.
#pragma once

#include "layout.hpp"
#include "linear.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

// Where a panel's results go.
struct PanelOutput {
    float* y;
    int64_t ldy;
    const float* bias;
    int columns;  // of the panel's 16, those that exist
    bool add;
};

FORGE_INLINE void finish_row(const PanelOutput& out, int m, f32x16 f) {
    float* y = out.y + m * out.ldy;
    if (out.columns == kPanelRows) {
        if (out.bias) f = f + load(out.bias);
        if (out.add) f = f + load(y);
        store(y, f);
        return;
    }
    if (out.bias) f = f + load_partial(out.bias, out.columns);
    if (out.add) f = f + load_partial(y, out.columns);
    store_partial(y, f, out.columns);
}

struct LoadF16 {
    static constexpr int kBytes = 32;
    FORGE_INLINE f32x16 at(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }
};
struct LoadBF16 {
    static constexpr int kBytes = 32;
    FORGE_INLINE f32x16 at(const uint8_t* p) { return load_bf16(reinterpret_cast<const uint16_t*>(p)); }
};
struct LoadF32 {
    static constexpr int kBytes = 64;
    FORGE_INLINE f32x16 at(const uint8_t* p) { return load(reinterpret_cast<const float*>(p)); }
};

// Even and odd inputs have a register each, for any number of rows: one would wait for every addition before the next.
template <class Load, int M>
__attribute__((noinline)) void float_panel(const uint8_t* w, int64_t cols, const float* x, int64_t ldx,
                                           const PanelOutput& out) {
    constexpr int kAhead = 4096;
    f32x16 even[M], odd[M];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) even[m] = odd[m] = zero();
    int64_t k = 0;
    for (; k + 2 <= cols; k += 2, w += 2 * Load::kBytes) {
#pragma GCC unroll 2
        for (int line = 0; line < 2 * Load::kBytes; line += 64) prefetch(w + kAhead + line);
        const f32x16 first = Load::at(w), second = Load::at(w + Load::kBytes);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            even[m] = fma(first, splat(x[m * ldx + k]), even[m]);
            odd[m] = fma(second, splat(x[m * ldx + k + 1]), odd[m]);
        }
    }
    if (k < cols) {
        const f32x16 last = Load::at(w);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) even[m] = fma(last, splat(x[m * ldx + k]), even[m]);
    }
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish_row(out, m, even[m] + odd[m]);
}

constexpr int kFloatTileRows = kTileRows < 8 ? kTileRows : 8;

template <class Load, int M = kFloatTileRows>
void float_panel_of(int rows, const uint8_t* w, int64_t cols, const float* x, int64_t ldx, const PanelOutput& out) {
    if (rows == M)
        float_panel<Load, M>(w, cols, x, ldx, out);
    else if constexpr (M > 1)
        float_panel_of<Load, M - 1>(rows, w, cols, x, ldx, out);
}

static inline void multiply_float_panel(Encoding encoding, int rows, const uint8_t* w, int64_t cols, const float* x,
                                        int64_t ldx, const PanelOutput& out) {
    switch (encoding) {
        case Encoding::f16: return float_panel_of<LoadF16>(rows, w, cols, x, ldx, out);
        case Encoding::bf16: return float_panel_of<LoadBF16>(rows, w, cols, x, ldx, out);
        default: return float_panel_of<LoadF32>(rows, w, cols, x, ldx, out);
    }
}

}  // namespace forge::FORGE_ISA
