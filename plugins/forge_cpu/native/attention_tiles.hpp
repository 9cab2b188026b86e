// The inner products of attention: scores of R rows with groups of 16 keys, the softmax of one partition, and the
// values weighted with it. Included by attention.cpp only.
//
// Whatever R, and however many groups or dims are taken at once, one score is Σ q[d]·k[d] in ascending d in one lane,
// and one output is Σ p[key]·v[key] in ascending keys in one lane: that is what makes rows independent of each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "attention.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

// What is stored: how 16 elements become floats, and whether they are multiplied by a scale later.
struct StoredF32 {
    static constexpr int kBytes = 4;
    static constexpr bool kScaled = false;
    __attribute__((always_inline)) static f32x16 get(const std::byte* p) {
        return load(reinterpret_cast<const float*>(p));
    }
};
struct StoredF16 {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
    __attribute__((always_inline)) static f32x16 get(const std::byte* p) {
        return load_f16(reinterpret_cast<const uint16_t*>(p));
    }
};
struct StoredBf16 {
    static constexpr int kBytes = 2;
    static constexpr bool kScaled = false;
    __attribute__((always_inline)) static f32x16 get(const std::byte* p) {
        return load_bf16(reinterpret_cast<const uint16_t*>(p));
    }
};
struct StoredInt8 {
    static constexpr int kBytes = 1;
    static constexpr bool kScaled = true;
    __attribute__((always_inline)) static f32x16 get(const std::byte* p) {
        return load_i8(reinterpret_cast<const int8_t*>(p));
    }
};

// Registers of sixteen floats that sums may take, and the most rows that are worth sharing a load.
#if defined(FORGE_ISA_AVX512)
constexpr int kSums = 24, kMostRows = 12;
#else
constexpr int kSums = 6, kMostRows = 4;
#endif

// How many vectors of keys or of dims go with R rows.
constexpr int beside(int rows) { return kSums / rows >= 4 ? 4 : kSums / rows >= 2 ? 2 : 1; }

constexpr int kGroups = kPartition / 16;
// Floats between the scores of two rows: no power of two, so that rows don't fall on each other in the cache.
constexpr int64_t kScoreStride = kPartition + 16;

// One partition of one KV head: where its groups of 16 keys lie.
struct Partition {
    const std::byte* keys[kGroups];
    const std::byte* values[kGroups];
    const float* key_scales[kGroups];
    const float* value_scales[kGroups];
};

// The part of a partition that a row sees, relative to its begin; begin == end: nothing.
struct Range {
    int begin, end;
};

// The caches are warm for all but the first rows of a large tile; these ask for memory ahead of its use.
constexpr bool fetches_ahead(int rows) { return rows < 12; }
constexpr int kValuesAhead = 4;  // groups: about the time that memory takes to answer

// `ahead`: what is read after these groups.
template <class Stored, int R, int G>
FORGE_INLINE void score_groups(const float* q, const Partition& part, int group, const std::byte* const (&ahead)[G],
                               int64_t k_dim, float* scores) {
    constexpr int64_t kStep = 16 * Stored::kBytes;
    f32x16 sum[G][R];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) sum[g][r] = zero();
    const std::byte* keys[G];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) keys[g] = part.keys[group + g];
    auto add_dim = [&](int64_t d) __attribute__((always_inline)) {
        f32x16 k[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) k[g] = Stored::get(keys[g] + d * kStep);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const f32x16 x = splat(q[d * R + r]);
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) sum[g][r] = fma(k[g], x, sum[g][r]);
        }
    };
    int64_t d = 0;
    for (; d + 4 <= k_dim; d += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            if constexpr (fetches_ahead(R)) {
#pragma GCC unroll 4
                for (int g = 0; g < G; ++g)
                    if (i * kStep % 64 == 0) prefetch(ahead[g] + (d + i) * kStep);
            }
            add_dim(d + i);
        }
    }
    for (; d < k_dim; ++d) add_dim(d);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) {
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            f32x16 s = sum[g][r];
            if constexpr (Stored::kScaled) s = s * load(part.key_scales[group + g]);
            store(scores + r * kScoreStride + (group + g) * 16, s);
        }
    }
}

template <class Stored, int R, int G>
FORGE_INLINE int score_by(const float* q, const Partition& part, int group, int first, int last, int64_t k_dim,
                          float* scores) {
    for (; group + G <= last; group += G) {
        const std::byte* ahead[G];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const int next = group + G + g;  // after the keys come the values
            ahead[g] = next < last ? part.keys[next] : part.values[next - last + first < last ? next - last + first : first];
        }
        score_groups<Stored, R, G>(q, part, group, ahead, k_dim, scores);
    }
    return group;
}

// Scores of R rows, q [dim][R], with groups [first, last) → scores [R][kScoreStride].
template <class Stored, int R>
static void score_rows(const float* q, const Partition& part, int first, int last, int64_t k_dim, float* scores) {
    constexpr int G = beside(R);
    const int group = score_by<Stored, R, G>(q, part, first, first, last, k_dim, scores);
    if constexpr (G > 1) score_by<Stored, R, 1>(q, part, group, first, last, k_dim, scores);
}

template <class Stored, int R, int N>
FORGE_INLINE void weigh_dims(const float* weights, const Partition& part, Range keys, int64_t stride, int64_t dim,
                             float* out, int64_t out_stride) {
    f32x16 sum[R][N];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) sum[r][i] = load(out + r * out_stride + dim + i * 16);
    for (int key = keys.begin; key < keys.end;) {
        const int group = key / 16;
        const int stop = group * 16 + 16 < keys.end ? group * 16 + 16 : keys.end;
        const int64_t at = ((key - group * 16) * stride + dim) * Stored::kBytes;
        const std::byte* v = part.values[group] + at;
        const int next = group + kValuesAhead;
        const std::byte* ahead = part.values[next * 16 < keys.end ? next : group] + at;
        for (; key < stop; ++key, v += stride * Stored::kBytes, ahead += stride * Stored::kBytes) {
            if constexpr (fetches_ahead(R)) {
#pragma GCC unroll 4
                for (int i = 0; i < N * 16 * Stored::kBytes; i += 64) prefetch(ahead + i);
            }
            f32x16 value[N];
#pragma GCC unroll 4
            for (int i = 0; i < N; ++i) value[i] = Stored::get(v + i * 16 * Stored::kBytes);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const f32x16 p = splat(weights[r * kScoreStride + key]);
#pragma GCC unroll 4
                for (int i = 0; i < N; ++i) sum[r][i] = fma(value[i], p, sum[r][i]);
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) store(out + r * out_stride + dim + i * 16, sum[r][i]);
}

// out [R][out_stride] += weights · values over a range of keys; stride: v_dim padded to 16.
template <class Stored, int R>
static void weigh_rows(const float* weights, const Partition& part, Range keys, int64_t stride, float* out,
                       int64_t out_stride) {
    constexpr int N = beside(R);
    if (keys.begin >= keys.end) return;
    int64_t dim = 0;
    for (; dim + N * 16 <= stride; dim += N * 16)
        weigh_dims<Stored, R, N>(weights, part, keys, stride, dim, out, out_stride);
    if constexpr (N > 1)
        for (; dim < stride; dim += 16) weigh_dims<Stored, R, 1>(weights, part, keys, stride, dim, out, out_stride);
}

constexpr float kNothing = -__builtin_huge_valf();  // the largest score of a row that sees no key

// Scores of one row → weights e^(score - largest), 0 outside its range, times the values' scales where they have some.
// Groups [first, last) are those that were computed. Returns the largest score; *total: Σ of the exponentials.
template <class Stored>
FORGE_INLINE float soften(float* scores, const Partition& part, Range keys, int first, int last, float* total) {
    *total = 0;
    if (keys.begin >= keys.end) return kNothing;
    alignas(64) static constexpr float kLane[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const f32x16 lane = load(kLane), nothing = splat(kNothing);
    f32x16 most = nothing;
    for (int group = first; group < last; ++group) {
        f32x16 s = load(scores + group * 16);
        const int from = keys.begin - group * 16, to = keys.end - group * 16;
        if (from > 0 || to < 16) {
            s = select(less(lane, splat(static_cast<float>(to))), s, nothing);
            s = select(less(lane, splat(static_cast<float>(from))), nothing, s);
            store(scores + group * 16, s);
        }
        most = max(most, s);
    }
    const float largest = reduce_max(most);
    if (!(largest > kNothing)) return kNothing;
    f32x16 sum = zero();
    const f32x16 shift = splat(largest);
    for (int group = first; group < last; ++group) {
        f32x16 p = exp(load(scores + group * 16) - shift);
        sum = sum + p;
        if constexpr (Stored::kScaled) p = p * load(part.value_scales[group]);
        store(scores + group * 16, p);
    }
    *total = reduce_add(sum);
    return largest;
}

}  // namespace forge::FORGE_ISA
