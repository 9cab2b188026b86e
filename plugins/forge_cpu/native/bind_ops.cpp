// Python's norm, RoPE and SiLU product: checks shapes, then runs the kernels in a region of a pool.
#include <nanobind/stl/vector.h>

#include <vector>

#include "bind_operations.hpp"
#include "bindings.hpp"
#include "operations.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge {

namespace {

template <class T>
std::int64_t size_of(const T& array, std::size_t axis) {
    return static_cast<std::int64_t>(array.shape(axis));
}

constexpr std::int64_t kRowsAChunk = 4;

// Rows [0, n) of an operation, shared among the workers.
template <class Call>
void run_rows(BoundPool& pool, void (*operation)(const Call&, std::int64_t, std::int64_t), const Call& call,
              std::int64_t rows) {
    nb::gil_scoped_release release;
    pool.pool.run(
        [&](Worker& worker) {
            worker.share(rows, kRowsAChunk, [&](std::int64_t begin, std::int64_t end) { operation(call, begin, end); });
        },
        (rows + kRowsAChunk - 1) / kRowsAChunk);
}

void run_rms_norm(BoundPool& pool, Array<const float, 2> x, Array<const float, 1> weight, double eps,
                  Array<float, 2> out) {
    const std::int64_t rows = size_of(x, 0), dim = size_of(x, 1);
    expect_shape("weight", weight, {dim});
    expect_shape("out", out, {rows, dim});
    const RmsNormCall call{x.data(), dim, weight.data(), dim, static_cast<float>(eps), out.data(), dim};
    run_rows(pool, pool.kernels.operations->rms_norm, call, rows);
}

void run_rope(BoundPool& pool, Array<const float, 3> x, Array<const std::int64_t, 1> positions,
              const std::vector<double>& inverse_frequencies, bool interleaved, double magnitude,
              Array<float, 3> out) {
    const std::int64_t rows = size_of(x, 0), heads = size_of(x, 1), dim = size_of(x, 2);
    const auto pairs = static_cast<std::int64_t>(inverse_frequencies.size());
    expect_shape("positions", positions, {rows});
    expect_shape("out", out, {rows, heads, dim});
    if (2 * pairs > dim) {
        throw std::invalid_argument(std::to_string(pairs) + " pairs don't fit into heads of " + std::to_string(dim));
    }
    const Operations& operations = *pool.kernels.operations;
    nb::gil_scoped_release release;
    const auto scratch = pool.scratch(rows * 2 * pairs * 4);
    auto* table = reinterpret_cast<float*>(scratch.bytes);
    const RopeCall call{x.data(), heads * dim, heads, dim, pairs, interleaved, table, out.data(), heads * dim};
    pool.pool.run(
        [&](Worker& worker) {
            worker.share(rows, kRowsAChunk, [&](std::int64_t begin, std::int64_t end) {
                rope_table(positions.data(), inverse_frequencies.data(), pairs, magnitude, table, begin, end);
                operations.rope(call, begin, end);
            });
        },
        (rows + kRowsAChunk - 1) / kRowsAChunk);
}

void run_silu_mul(BoundPool& pool, Array<const float, 2> gate_up, Array<float, 2> out) {
    const std::int64_t rows = size_of(gate_up, 0), dim = size_of(gate_up, 1) / 2;
    expect_shape("gate_up", gate_up, {rows, 2 * dim});
    expect_shape("out", out, {rows, dim});
    run_rows(pool, pool.kernels.operations->silu_mul, SiluMulCall{gate_up.data(), 2 * dim, dim, out.data(), dim},
             rows);
}

}  // namespace

void bind_ops(nb::module_& m) {
    m.def("rms_norm", run_rms_norm, "pool"_a, "x"_a.noconvert(), "weight"_a.noconvert(), "eps"_a, "out"_a.noconvert(),
          "Root-mean-square norm of x [n, dim] into out, which may be x.");
    m.def("rope", run_rope, "pool"_a, "x"_a.noconvert(), "positions"_a.noconvert(), "inverse_frequencies"_a,
          "interleaved"_a, "magnitude"_a, "out"_a.noconvert(),
          "Rotate the first 2 * len(inverse_frequencies) numbers of each head of x [n, heads, dim] into out, which may "
          "be x. Pairs are neighbours where interleaved, else halves.");
    m.def("silu_mul", run_silu_mul, "pool"_a, "gate_up"_a.noconvert(), "out"_a.noconvert(),
          "silu(gate) * up of gate_up [n, 2 * f] into out [n, f].");
}

}  // namespace forge
