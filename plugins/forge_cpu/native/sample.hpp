// Sampling: one token a row from float32 logits. The same order and meaning as forge.interfaces.drawing.
//
// log-probabilities → bias → penalties → mask and bans → temperature → top-k → top-p → min-p → draw by inverting the
// distribution in the order of ids. A row's token depends on its own logits and settings alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace forge {

inline constexpr std::int64_t kNoToken = -1;

// Lists of ids of all rows one after the other: row r has [starts[r], starts[r + 1]). Null where no row has any.
// Ids must lie in the vocabulary; whoever makes the call checks that.
struct SampleCall {
    float* logits;  // [rows][stride], overwritten
    std::int64_t stride, rows, vocabulary;

    const float *temperature, *top_p, *min_p;
    const std::int32_t* top_k;
    const std::uint64_t* seed;
    const std::uint32_t *choice, *position;

    const float *repetition_penalty, *presence_penalty, *frequency_penalty;  // set where history_starts is
    const std::int64_t *history_starts, *history_ids, *history_counts;
    const std::int64_t *bias_starts, *bias_ids;
    const float* bias_values;
    const std::int64_t *banned_starts, *banned_ids;
    const std::int32_t* masks;  // [rows][mask_words], bit 1: allowed
    std::int64_t mask_words;
    const std::int64_t* targets;  // the id to score instead of drawing one; negative: draw

    std::int64_t* tokens;     // [rows]; kNoToken where the largest logit isn't finite, or nothing is allowed
    float* logprobs;          // [rows]; null: no log-probabilities
    std::int64_t alternatives;
    std::int64_t* top_ids;    // [rows][alternatives], most probable first, ties by lowest id
    float* top_logprobs;

    std::byte* scratch;  // Operations::sample_scratch for each worker, beginning at a multiple of 64
};

}  // namespace forge
