// Norm, RoPE, SiLU product and sum, row by row; compiled once per instruction set. See operations.hpp.

#include "operation_kernels.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

namespace {

// Does body(at, get, put) for all lanes of a row: 16 at a time, then the rest, which loads as zeros and isn't stored
// beyond its end.
template <class Body>
FORGE_INLINE void by_lanes(int64_t dim, Body&& body) {
    int64_t i = 0;
    for (; i + 16 <= dim; i += 16)
        body(i, [](const float* p) __attribute__((always_inline)) { return load(p); },
             [](float* p, f32x16 x) __attribute__((always_inline)) { store(p, x); });
    if (i < dim) {
        const int rest = static_cast<int>(dim - i);
        body(i, [rest](const float* p) __attribute__((always_inline)) { return load_partial(p, rest); },
             [rest](float* p, f32x16 x) __attribute__((always_inline)) { store_partial(p, x, rest); });
    }
}

FORGE_INLINE float square_sum(const float* x, int64_t dim) {
    f32x16 sum[4] = {zero(), zero(), zero(), zero()};
    int64_t i = 0;
    for (; i + 64 <= dim; i += 64) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const f32x16 v = load(x + i + 16 * j);
            sum[j] = fma(v, v, sum[j]);
        }
    }
    for (; i < dim; i += 16) {
        const f32x16 v = dim - i < 16 ? load_partial(x + i, static_cast<int>(dim - i)) : load(x + i);
        sum[0] = fma(v, v, sum[0]);
    }
    return reduce_add((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// A call of its own keeps errno and the library out of the loop's code.
FORGE_INLINE float inverse_root(float x) { return 1.f / __builtin_sqrtf(x); }

}  // namespace

void rms_norm(const RmsNormCall& call, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* x = call.x + row * call.x_stride;
        float* out = call.out + row * call.out_stride;
        const float mean = square_sum(x, call.dim) / static_cast<float>(call.dim);
        const f32x16 factor = splat(inverse_root(mean + call.eps));
        by_lanes(call.dim, [&](int64_t i, auto get, auto put) __attribute__((always_inline)) {
            put(out + i, get(x + i) * factor * get(call.weight + i));
        });
    }
}

void rope(const RopeCall& call, int64_t begin, int64_t end) {
    const int64_t pairs = call.pairs;
    for (int64_t row = begin; row < end; ++row) {
        const float* cosines = call.table + row * 2 * pairs;
        const float* sines = cosines + pairs;
        for (int64_t head = 0; head < call.heads; ++head) {
            const float* x = call.x + row * call.x_stride + head * call.dim;
            float* out = call.out + row * call.out_stride + head * call.dim;
            if (call.interleaved) {
                // In steps of one cache line through a buffer: the compiler turns the strides into shuffles.
                for (int64_t first = 0; first < pairs; first += 16) {
                    const int64_t count = pairs - first < 16 ? pairs - first : 16;
                    float a[16], b[16];
                    for (int64_t i = 0; i < count; ++i) {
                        a[i] = x[2 * (first + i)];
                        b[i] = x[2 * (first + i) + 1];
                    }
                    for (int64_t i = 0; i < count; ++i) {
                        const float c = cosines[first + i], s = sines[first + i];
                        out[2 * (first + i)] = a[i] * c - b[i] * s;
                        out[2 * (first + i) + 1] = b[i] * c + a[i] * s;
                    }
                }
            } else {
                by_lanes(pairs, [&](int64_t i, auto get, auto put) __attribute__((always_inline)) {
                    const f32x16 a = get(x + i), b = get(x + pairs + i);
                    const f32x16 c = get(cosines + i), s = get(sines + i);
                    put(out + i, a * c - b * s);
                    put(out + pairs + i, b * c + a * s);
                });
            }
            if (out != x)
                for (int64_t i = 2 * pairs; i < call.dim; ++i) out[i] = x[i];
        }
    }
}

void silu_mul(const SiluMulCall& call, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* gate = call.x + row * call.x_stride;
        const float* up = gate + call.dim;
        float* out = call.out + row * call.out_stride;
        by_lanes(call.dim, [&](int64_t i, auto get, auto put) __attribute__((always_inline)) {
            const f32x16 g = get(gate + i);
            put(out + i, g / (splat(1.f) + exp(-g)) * get(up + i));
        });
    }
}

void add(const AddCall& call, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const float* x = call.x + row * call.x_stride;
        const float* y = call.y + row * call.y_stride;
        float* out = call.out + row * call.out_stride;
        by_lanes(call.dim, [&](int64_t i, auto get, auto put) __attribute__((always_inline)) {
            put(out + i, get(x + i) + get(y + i));
        });
    }
}

}  // namespace forge::FORGE_ISA
