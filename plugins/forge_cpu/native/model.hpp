// A whole decoder model as one call: embedding, layers, final norm, in a single parallel region.
//
// For bind_model.cpp. Knows pre-norm decoder layers with grouped-query attention and a gated MLP; the weights, pages
// and arrays it points at belong to the caller.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "attention.hpp"
#include "isa.hpp"
#include "matrix.hpp"
#include "operations.hpp"
#include "pool.hpp"

namespace forge {

// Null pointers: absent.
struct DecoderLayer {
    const float* attention_norm;
    const Matrix* qkv;          // stacked: queries, keys, values
    const float* qkv_bias;
    const float* q_norm;        // over each head's k_dim
    const float* k_norm;
    const Matrix* output;
    const float* output_bias;
    const float* mlp_norm;
    const Matrix* gate_up;      // stacked: gate, up
    const float* gate_up_bias;
    const Matrix* down;
    const float* down_bias;
    AttentionShape attention;
};

struct DecoderModel {
    const Matrix* embedding;
    std::vector<DecoderLayer> layers;
    const float* final_norm;
    float eps;
    std::vector<double> inverse_frequencies;
    bool interleaved;
    double magnitude;

    int64_t hidden() const { return embedding->cols(); }
};

// A step: `rows` rows of `spans` spans, as forge.interfaces.backend.StepInputs has them. pages: one a layer.
// out [outputs][hidden]: the final norm of output_rows.
struct Step {
    int64_t rows, spans, outputs, table_stride;
    Rounding rounding;  // of activations
    const int64_t *token_ids, *positions, *slots, *span_starts, *lengths, *block_table, *output_rows;
    std::vector<PagesView> pages;
    float* out;
};

// Memory between the operations of a step, kept for the next one.
class Workspace {
public:
    // At least `bytes`, aligned to 64; what it held is lost.
    std::byte* of(int64_t bytes);

private:
    std::vector<std::byte> memory_;
};

// Throws std::invalid_argument where spans and lengths don't fit together. Indices (ids, slots, blocks, rows) must be
// in range: whoever makes the step checks them.
void forward(Pool& pool, const Kernels& kernels, const DecoderModel& model, const Step& step, Workspace& workspace);

}  // namespace forge
