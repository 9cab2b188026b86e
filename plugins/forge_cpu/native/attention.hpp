// Attention over paged keys and values: what is computed, how it is cut into units of work, what the kernels take.
//
// Every row (query position × head) attends partition by partition: 256 keys, at absolute multiples of 256 positions.
// A partition gives (largest score, sum of exponentials, weighted values); they are merged in ascending order, whoever
// computed them. So a row's bits depend on its query, its keys and nothing else: not on the rows beside it, on chunks,
// blocks, threads, nor on how long sequences are split among workers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pages.hpp"

namespace forge {

inline constexpr std::int64_t kPartition = 256;  // keys
inline constexpr std::int64_t kAttentionRows = 48;    // rows (positions × heads of one KV head) that a unit holds at most

// window: how many last positions a query sees, its own included; 0: all.
struct AttentionShape {
    std::int64_t heads, kv_heads, k_dim, v_dim, window;
    float scale;
};

// One tile of rows, one KV head, some partitions. Rows are positions × heads, heads fastest.
struct AttentionUnit {
    std::int64_t span;
    std::int64_t first_row;       // of q
    std::int64_t first_position;  // of that row in its sequence
    std::int64_t positions;
    std::int64_t first_head, heads;  // query heads, all of one KV head
    std::int64_t first_part, last_part;
    std::int64_t partials;  // where the tile's partials lie, in floats; -1: the unit has all parts and writes the result
    std::int64_t tile_part; // the tile's first partition, which `partials` begins with
};

// How a step's spans are cut; the same for all layers of one shape. Made once a step by `plan_attention`.
struct AttentionPlan {
    AttentionShape shape{};
    std::vector<AttentionUnit> units;
    std::vector<AttentionUnit> merges;   // split tiles: all their parts
    std::int64_t partial_floats = 0;
};

// span_starts [spans + 1]: the row where each span begins; lengths [spans]: positions in the cache after this step.
// Tiles are cut until `threads` workers have even shares, as far as `most_partial_floats` of partials hold.
// Results don't depend on either. Throws std::invalid_argument on inconsistent sizes.
AttentionPlan plan_attention(const AttentionShape& shape, const std::int64_t* span_starts, const std::int64_t* lengths,
                             std::int64_t spans, int threads, std::int64_t most_partial_floats);

inline constexpr std::int64_t kMostPartialFloats = std::int64_t{1} << 22;  // 16 MiB, touched as far as used

// Row i of q begins at q + i * q_stride, with its heads one after the other; out likewise. block_table: row s are the
// blocks of span s. partials: plan.partial_floats floats; scratch: Operations::attention_scratch for each worker,
// beginning at a multiple of 64. The plan's lists as pointers, since kernels keep away from library templates.
struct AttentionCall {
    AttentionShape shape;
    const AttentionUnit* units;
    std::int64_t unit_count;
    const AttentionUnit* merges;
    std::int64_t merge_count;
    PagesView pages;
    const float* q;
    std::int64_t q_stride;
    const std::int64_t* block_table;
    std::int64_t table_stride;
    float* out;
    std::int64_t out_stride;
    float* partials;
    std::byte* scratch;
    bool rounded;  // products may take operands rounded to bfloat16, where the instruction set has such products
};

// The fields of a call that come from the plan, which must outlive it; the others are zero.
AttentionCall attention_call(const AttentionPlan& plan);

// Rows of k and v, kv heads one after the other, to be stored at slots (block · block_size + offset).
struct KvWriteCall {
    PagesView pages;
    const std::int64_t* slots;
    const float* k;
    std::int64_t k_stride;
    const float* v;
    std::int64_t v_stride;
};

// Whole blocks as float32: k [blocks · block_size, kv_heads, k_dim], v alike.
struct KvReadCall {
    PagesView pages;
    const std::int64_t* blocks;
    float* k;
    float* v;
};

}  // namespace forge
