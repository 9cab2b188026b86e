// What the kernel sources of one instruction set offer to its table, kernels.cpp.
#pragma once

#include <cstdint>

#include "isa.hpp"

namespace forge::FORGE_ISA {

int tile_rows();
void quantize_rows(Worker&, const float* x, int64_t ldx, Activations& out);
void quantize_range(const float* x, Activations& out, int64_t begin, int64_t end);
void linear(Worker&, const LinearCall&);
double dot_ceiling(int64_t rounds, int32_t* sink);
double fma_ceiling(int64_t rounds, float* sink);

}  // namespace forge::FORGE_ISA
