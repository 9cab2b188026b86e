// Instruction sets: the table of kernels each of them provides, and which of them this machine can run.
//
// An operation's kernel source implements its functions in `namespace forge::FORGE_ISA`; kernels.cpp, compiled once per
// set like them, collects their addresses. Callers go through the table of the pool's set and never name a set.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace forge {

struct Worker;
struct Activations;
struct LinearCall;
struct Operations;

struct Kernels {
    const char* isa;

    // Activation rows that one pass over a panel serves: the tile of `Activations`.
    int tile_rows;
    // Float rows to int8 blocks: see layout.hpp. Called by all workers; a barrier before linear() is the caller's.
    void (*quantize_rows)(Worker&, const float* x, int64_t ldx, Activations& out);
    // The same for rows [begin, end) of contiguous rows alone, called by one worker.
    void (*quantize_range)(const float* x, Activations& out, int64_t begin, int64_t end);
    // y = x·Wᵀ with an epilogue: see linear.hpp. Called by all workers; a barrier before y is read is the caller's.
    void (*linear)(Worker&, const LinearCall&);
    // Int8 products from registers alone, the ceiling that benchmarks compare with; returns the operations done.
    double (*dot_ceiling)(int64_t rounds, int32_t* sink);
    // The same of float32 multiplications and additions.
    double (*fma_ceiling)(int64_t rounds, float* sink);
    // Everything between the linear layers: see operations.hpp.
    const Operations* operations;
};

// Those built in that this processor can run, best first; never empty.
std::vector<const Kernels*> runnable_kernels();

// The table of one set, by name. Throws std::invalid_argument that lists what there is.
const Kernels& find_kernels(const std::string& isa);

}  // namespace forge
