// Attention with products of bfloat16 pairs, for sets that have them: keys, values, queries and weights rounded to 8
// bits of mantissa, sums in float. Included by attention.cpp only.
//
// Pairs are of dims, of 16 keys, for the scores, and of keys, of 16 dims, for the values. Rows that are all taken together
// make them in registers; for more rows a partition is brought into pairs once. Rows take whole groups of keys with weight 0 where they see nothing: adding 0 · v changes
// no bit, since float16 pages, the only ones read here, hold finite numbers only. So rows stay independent of each
// other: pairs are added in ascending order into one register per score and per output.
#pragma once

#include "attention_tiles.hpp"

#if defined(FORGE_HAS_PAIR_PRODUCTS)

namespace forge::FORGE_ISA {

constexpr int64_t kPairsGroup = 8;  // pairs of keys in a group
constexpr int kPairsAhead = 4;      // groups that are fetched ahead: about the time that memory takes to answer
// Bytes between the rounded weights of two rows: no power of two.
constexpr int64_t kWeightBytes = kPartition * 2 + 64;

constexpr bool takes_pairs(const AttentionShape& shape, PageFormat format, bool rounded) {
    return rounded && format == PageFormat::f16 && shape.k_dim % 2 == 0;
}

// One partition in pairs: keys [group][k_dim / 2][16 keys][2], values [group][8][v_stride dims][2], bfloat16.
struct PairPartition {
    std::byte* keys;
    std::byte* values;
};

// Where pairs come from: a buffer that holds them,
struct FromBuffer {
    const PairPartition& pairs;
    int64_t k_dim, stride;

    __attribute__((always_inline)) bf16x32 keys(int group, int64_t pair) const {
        return load_pairs(pairs.keys + (group * k_dim + 2 * pair) * 32);
    }
    __attribute__((always_inline)) bf16x32 values(int64_t pair, int64_t dim) const {
        return load_pairs(pairs.values + (pair * stride + dim) * 4);
    }
};
// or pages, of which groups [first, last) are read in ascending order, keys before values: what comes `ahead` is fetched.
struct FromPages {
    const Partition& part;
    int64_t k_dim, stride;
    int first, last;

    __attribute__((always_inline)) bf16x32 keys(int group, int64_t pair) const {
        const int next = group + kPairsAhead, after = first + (next - last);
        prefetch((next < last ? part.keys[next] : part.values[after < last ? after : first]) + pair * 64);
        const std::byte* at = part.keys[group] + pair * 64;
        return round_pairs(StoredF16::get(at), StoredF16::get(at + 32));
    }
    __attribute__((always_inline)) bf16x32 values(int64_t pair, int64_t dim) const {
        const int group = static_cast<int>(pair / kPairsGroup), next = group + kPairsAhead;
        const int64_t at = (pair % kPairsGroup * 2 * stride + dim) * 2;
        const std::byte* even = part.values[group] + at;
        const std::byte* ahead = part.values[next < last ? next : group] + at;
        prefetch(ahead);
        prefetch(ahead + stride * 2);
        return round_pairs(StoredF16::get(even), StoredF16::get(even + stride * 2));
    }
};

// Groups [first, last) of a partition into the buffer.
static void make_pairs(const Partition& part, int first, int last, int64_t k_dim, int64_t stride, const PairPartition& to) {
    const FromPages pages{part, k_dim, stride, first, last};
    for (int group = first; group < last; ++group)
        for (int64_t pair = 0; 2 * pair < k_dim; ++pair)
            store_pairs(to.keys + (group * k_dim + 2 * pair) * 32, pages.keys(group, pair));
    for (int64_t pair = first * kPairsGroup; pair < last * kPairsGroup; ++pair)
        for (int64_t dim = 0; dim < stride; dim += 16)
            store_pairs(to.values + (pair * stride + dim) * 4, pages.values(pair, dim));
}

template <int R, int G, class From>
FORGE_INLINE int score_pairs_by(const uint32_t* q, const From& from, int group, int last, int64_t k_dim, float* scores) {
    const int64_t pairs = k_dim / 2;
    for (; group + G <= last; group += G) {
        f32x16 sum[G][R];
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) sum[g][r] = zero();
#pragma GCC unroll 2
        for (int64_t pair = 0; pair < pairs; ++pair) {
            bf16x32 k[G];
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) k[g] = from.keys(group + g, pair);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
                for (int g = 0; g < G; ++g) sum[g][r] = add_pairs(sum[g][r], k[g], q[pair * R + r]);
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) store(scores + r * kScoreStride + (group + g) * 16, sum[g][r]);
    }
    return group;
}

// weights: rows kWeightBytes apart → out rows, dims [dim, dim + 16 · N), from groups [first, last).
template <int R, int N, class From>
FORGE_INLINE void weigh_pairs(const std::byte* weights, const From& from, int first, int last, int64_t dim, float* out,
                              int64_t out_stride) {
    f32x16 sum[R][N];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) sum[r][i] = zero();
#pragma GCC unroll 2
    for (int64_t pair = first * kPairsGroup; pair < last * kPairsGroup; ++pair) {
        bf16x32 value[N];
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) value[i] = from.values(pair, dim + 16 * i);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) {
            const auto w = peek<uint32_t>(weights + r * kWeightBytes + pair * 4);
#pragma GCC unroll 4
            for (int i = 0; i < N; ++i) sum[r][i] = add_pairs(sum[r][i], value[i], w);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int i = 0; i < N; ++i) store(out + r * out_stride + dim + 16 * i, sum[r][i]);
}

// R rows over one partition → rows of [values, largest, total], `tail` floats behind the values. q [k_dim / 2][R] pairs.
template <int R, class From>
static void attend_pairs(const uint32_t* q, const Partition& part, const From& from, const Range* seen, int64_t tail,
                         float* scores, std::byte* weights, float* out) {
    const int64_t k_dim = from.k_dim, stride = from.stride;
    const int64_t row_floats = stride + tail;
    int begin = kPartition, end = 0;
    for (int r = 0; r < R; ++r) {
        if (seen[r].begin >= seen[r].end) continue;
        begin = seen[r].begin < begin ? seen[r].begin : begin;
        end = seen[r].end > end ? seen[r].end : end;
    }
    const int first = begin < end ? begin / 16 : 0, last = begin < end ? (end + 15) / 16 : 0;
    constexpr int G = beside(R), N = beside(R);
    const int rest = score_pairs_by<R, G>(q, from, first, last, k_dim, scores);
    if constexpr (G > 1) score_pairs_by<R, 1>(q, from, rest, last, k_dim, scores);
    for (int r = 0; r < R; ++r) {
        float *row = out + r * row_floats, *p = scores + r * kScoreStride;
        for (int64_t i = stride; i < row_floats; i += 16) store(row + i, zero());
        row[stride] = soften<StoredF16>(p, part, seen[r], first, last, row + stride + 1);
        const bool sees = row[stride] > kNothing;  // else the scores are still scores
        for (int group = first; group < last; ++group)
            store_rounded(weights + r * kWeightBytes + group * 32, sees ? load(p + group * 16) : zero());
    }
    int64_t dim = 0;
    for (; dim + N * 16 <= stride; dim += N * 16)
        weigh_pairs<R, N>(weights, from, first, last, dim, out, row_floats);
    if constexpr (N > 1)
        for (; dim < stride; dim += 16) weigh_pairs<R, 1>(weights, from, first, last, dim, out, row_floats);
}

}  // namespace forge::FORGE_ISA

#endif
