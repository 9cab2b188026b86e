// One instruction set's table of kernels; compiled once per set, like the kernels it lists.
#include "kernels.hpp"
#include "isa.hpp"
#include "operation_kernels.hpp"

#define FORGE_TEXT_OF(x) #x
#define FORGE_TEXT(x) FORGE_TEXT_OF(x)

namespace forge::FORGE_ISA {

extern const Kernels kernels;
const Kernels kernels = {
    .isa = FORGE_TEXT(FORGE_ISA),
    .tile_rows = tile_rows(),
    .quantize_rows = quantize_rows,
    .quantize_range = quantize_range,
    .linear = linear,
    .dot_ceiling = dot_ceiling,
    .fma_ceiling = fma_ceiling,
    .operations = &operations,
};

}  // namespace forge::FORGE_ISA
