// Python's Matrix and linear().
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "linear.hpp"
#include "matrix.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge {
namespace {

std::vector<std::string> encodings() {
    std::vector<std::string> names;
    for (const EncodingInfo& info : kEncodingInfo) names.emplace_back(info.name);
    return names;
}

template <class Actual>
void require(const char* what, Actual actual, int64_t wanted) {
    if (static_cast<int64_t>(actual) != wanted)
        throw std::invalid_argument(std::string(what) + " must be " + std::to_string(wanted) + ", not " +
                                    std::to_string(actual));
}

void pack(Matrix& self, BoundPool& pool, int segment, int64_t row, Array<const uint8_t, 2> data) {
    const auto rows = static_cast<int64_t>(data.shape(0));
    self.check_pack(segment, row, rows, static_cast<int64_t>(data.shape(1)));
    nb::gil_scoped_release released;
    pool.pool.run([&](Worker& worker) { self.pack(worker, segment, row, rows, data.data()); });
}

void rows(const Matrix& self, int64_t start, int64_t stop, Array<float, 2> out) {
    if (start < 0 || stop < start || stop > self.rows())
        throw std::invalid_argument("rows " + std::to_string(start) + " to " + std::to_string(stop) +
                                    " aren't within the matrix's " + std::to_string(self.rows()));
    require("out.shape[0]", out.shape(0), stop - start);
    require("out.shape[1]", out.shape(1), self.cols());
    nb::gil_scoped_release released;
    for (int64_t row = start; row < stop; ++row) self.dequantize_row(row, out.data() + (row - start) * self.cols());
}

void linear(BoundPool& pool, Array<const float, 2> x, const Matrix& matrix, std::optional<Array<const float, 1>> bias,
            Array<float, 2> out, bool add) {
    const auto n = static_cast<int64_t>(x.shape(0));
    require("x.shape[1]", x.shape(1), matrix.cols());
    require("out.shape[0]", out.shape(0), n);
    require("out.shape[1]", out.shape(1), matrix.rows());
    if (bias) require("bias.shape[0]", bias->shape(0), matrix.rows());
    nb::gil_scoped_release released;
    const bool quantised = matrix.any_quantised();
    const BoundPool::Scratch scratch = pool.scratch(quantised ? activation_bytes(n, matrix.cols(), pool.rounding.terms) : 0);
    Activations activations = activations_in(scratch.bytes, n, matrix.cols(), pool.kernels.tile_rows, pool.rounding);
    const LinearCall call{matrix.view(),
                          &activations,
                          x.data(),
                          matrix.cols(),
                          n,
                          out.data(),
                          matrix.rows(),
                          bias ? bias->data() : nullptr,
                          add};
    pool.pool.run([&](Worker& worker) {
        if (quantised) {
            pool.kernels.quantize_rows(worker, x.data(), matrix.cols(), activations);
            worker.barrier();
        }
        pool.kernels.linear(worker, call);
    });
}

}  // namespace

void bind_matrix(nb::module_& m) {
    m.def("encodings", &encodings, "Encodings, by GGUF name, that Matrix takes.");

    nb::class_<Matrix>(m, "Matrix", "Packed weights: segments (encoding, rows) stacked along the output.")
        .def(nb::init<const std::vector<std::pair<std::string, int64_t>>&, int64_t>(), "encodings_rows"_a, "cols"_a)
        .def("pack", &pack, "pool"_a, "segment"_a, "row"_a, "data"_a.noconvert(),
             "Pack rows of a segment, uint8[rows, bytes_per_row] as in a GGUF file, from `row` on. They come in\n"
             "multiples of 16 but for the segment's last ones.")
        .def("rows", &rows, "start"_a, "stop"_a, "out"_a.noconvert(),
             "Dequantise rows into float32[stop - start, cols].")
        .def_prop_ro("nbytes", &Matrix::bytes)
        .def_prop_ro("out_features", &Matrix::rows)
        .def_prop_ro("in_features", &Matrix::cols);

    m.def("linear", &linear, "pool"_a, "x"_a.noconvert(), "matrix"_a, "bias"_a.noconvert().none(), "out"_a.noconvert(),
          "add"_a = false,
          "out = x·Wᵀ + bias, or out += with `add`; x float32[n, in], out float32[n, out], which mustn't overlap x.");
}

}  // namespace forge
