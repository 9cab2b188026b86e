// The operations between the linear layers, as one instruction set offers them: attention, cache pages, norms, RoPE,
// SiLU, sampling. For code that runs inside a region of the pool: nothing here allocates.
//
// Those that take (begin, end) do these rows and nothing else: callers share rows among workers as suits them, or fuse
// them with what comes before or after. Those that take a Worker are called by all workers.
#pragma once

#include <cstdint>

namespace forge {

struct Worker;
struct AttentionShape;
struct AttentionCall;
struct PageLayout;
struct KvWriteCall;
struct KvReadCall;
struct SampleCall;

// Root-mean-square norm: out = x / sqrt(mean(x²) + eps) · weight. Strides in floats; out may be x.
struct RmsNormCall {
    const float* x;
    std::int64_t x_stride;
    const float* weight;
    std::int64_t dim;
    float eps;
    float* out;
    std::int64_t out_stride;
};

// Rotation of the first 2 · pairs numbers of each head, heads `dim` apart; out may be x.
// table [rows][2 · pairs]: the cosines of a row's position, then the sines; see `rope_table`.
struct RopeCall {
    const float* x;
    std::int64_t x_stride;
    std::int64_t heads, dim, pairs;
    bool interleaved;  // pairs are neighbours (2i, 2i + 1), not halves (i, i + pairs)
    const float* table;
    float* out;
    std::int64_t out_stride;
};

// out = silu(gate) · up; rows of x are [gate (dim), up (dim)]. out may begin where x does.
struct SiluMulCall {
    const float* x;
    std::int64_t x_stride;
    std::int64_t dim;
    float* out;
    std::int64_t out_stride;
};

// out = x + y; out may be either.
struct AddCall {
    const float* x;
    std::int64_t x_stride;
    const float* y;
    std::int64_t y_stride;
    std::int64_t dim;
    float* out;
    std::int64_t out_stride;
};

struct Operations {
    void (*kv_write)(const KvWriteCall&, std::int64_t begin, std::int64_t end);  // rows
    void (*kv_read)(const KvReadCall&, std::int64_t begin, std::int64_t end);    // blocks
    // Scratch bytes that attention needs for each worker, a multiple of 64.
    std::int64_t (*attention_scratch)(const AttentionShape&, const PageLayout&);
    // This step's keys and values must be written before. A barrier must follow before out is read.
    void (*attention)(Worker&, const AttentionCall&);
    void (*rms_norm)(const RmsNormCall&, std::int64_t begin, std::int64_t end);
    void (*rope)(const RopeCall&, std::int64_t begin, std::int64_t end);
    void (*silu_mul)(const SiluMulCall&, std::int64_t begin, std::int64_t end);
    void (*add)(const AddCall&, std::int64_t begin, std::int64_t end);
    // Scratch bytes that sample needs for each worker, a multiple of 64.
    std::int64_t (*sample_scratch)(std::int64_t vocabulary);
    void (*sample)(Worker&, const SampleCall&);
};

// Cosines and sines for rows [begin, end) of positions: table [row][2 · pairs]. Angles are formed in double precision,
// so that they're right at position 100,000 too. The same on every instruction set.
void rope_table(const std::int64_t* positions, const double* inverse_frequencies, std::int64_t pairs, double magnitude,
                float* table, std::int64_t begin, std::int64_t end);

}  // namespace forge
