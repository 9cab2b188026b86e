// Linear layers on packed weights: y = x·Wᵀ, for one row or thousands.
#pragma once

#include <cstdint>

#include "layout.hpp"

namespace forge {

// y[row][column] (+)= Σ x[row][k]·W[column][k] (+ bias[column]), for the columns of all segments.
//
// A row's result is the same to the bit whatever other rows there are, however the work is shared: blocks of inputs are
// added in ascending order, in one register per output.
struct LinearCall {
    MatrixView weights;
    const Activations* activations;  // rows in int8, which quantised segments read; may be null without any
    const float* x;                  // the same rows in float, which F16, BF16 and F32 segments read; may be null
    int64_t ldx;
    int64_t rows;
    float* y;  // must not overlap x
    int64_t ldy;
    const float* bias;  // one a column, or null
    bool add;           // to what y holds, rather than replacing it
};

}  // namespace forge
