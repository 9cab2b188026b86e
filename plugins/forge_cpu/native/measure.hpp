// Ceilings of this machine, which benchmarks put beside what kernels achieve.
#pragma once

#include <cstdint>

#include "isa.hpp"
#include "pool.hpp"

namespace forge {

// Bytes a second that the pool's workers read together from a buffer of `bytes`, over and over: the best of several
// passes.
double measure_bandwidth(Pool& pool, int64_t bytes);
// Int8 operations a second (a multiplication and an addition count as two), the best of several runs.
double measure_dot(Pool& pool, const Kernels& kernels);
// Float32 operations a second, likewise.
double measure_fma(Pool& pool, const Kernels& kernels);

}  // namespace forge
