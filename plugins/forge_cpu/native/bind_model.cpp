// Python's Model: decoder layers put together once, then whole steps in one call each.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/vector.h>

#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind_operations.hpp"
#include "bindings.hpp"
#include "model.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge {

namespace {

using Ids = Array<const std::int64_t, 1>;
using Vector = Array<const float, 1>;
using MaybeVector = std::optional<Vector>;

// A model and what keeps its arrays and matrices alive.
class BoundModel {
public:
    BoundModel(nb::object embedding, Vector final_norm, double eps, std::vector<double> inverse_frequencies,
               bool interleaved, double magnitude) {
        model_.embedding = matrix(std::move(embedding));
        model_.final_norm = vector("final_norm", final_norm, model_.hidden());
        model_.eps = static_cast<float>(eps);
        model_.inverse_frequencies = std::move(inverse_frequencies);
        model_.interleaved = interleaved;
        model_.magnitude = magnitude;
    }

    void add_layer(std::int64_t heads, std::int64_t kv_heads, std::int64_t k_dim, std::int64_t v_dim, double scale,
                   std::int64_t window, Vector attention_norm, nb::object qkv, nb::object output, Vector mlp_norm,
                   nb::object gate_up, nb::object down, MaybeVector qkv_bias, MaybeVector output_bias,
                   MaybeVector gate_up_bias, MaybeVector down_bias, MaybeVector q_norm, MaybeVector k_norm) {
        DecoderLayer layer{};
        const std::int64_t hidden = model_.hidden();
        layer.attention = {heads, kv_heads, k_dim, v_dim, window, static_cast<float>(scale)};
        if (heads <= 0 || kv_heads <= 0 || heads % kv_heads != 0) throw std::invalid_argument("heads don't divide evenly");
        const auto pairs = static_cast<std::int64_t>(model_.inverse_frequencies.size());
        if (2 * pairs > k_dim) throw std::invalid_argument("more numbers are rotated than a head has");
        layer.qkv = matrix(std::move(qkv), heads * k_dim + kv_heads * (k_dim + v_dim), hidden);
        layer.output = matrix(std::move(output), hidden, heads * v_dim);
        layer.down = matrix(std::move(down), hidden, -1);
        layer.gate_up = matrix(std::move(gate_up), 2 * layer.down->cols(), hidden);
        layer.attention_norm = vector("attention_norm", attention_norm, hidden);
        layer.mlp_norm = vector("mlp_norm", mlp_norm, hidden);
        layer.qkv_bias = vector("qkv_bias", qkv_bias, layer.qkv->rows());
        layer.output_bias = vector("output_bias", output_bias, hidden);
        layer.gate_up_bias = vector("gate_up_bias", gate_up_bias, layer.gate_up->rows());
        layer.down_bias = vector("down_bias", down_bias, hidden);
        layer.q_norm = vector("q_norm", q_norm, k_dim);
        layer.k_norm = vector("k_norm", k_norm, k_dim);
        model_.layers.push_back(layer);
    }

    void forward(BoundPool& pool, const std::vector<const Pages*>& pages, Ids token_ids, Ids positions, Ids slots,
                 Ids span_starts, Ids lengths, Array<const std::int64_t, 2> block_table, Ids output_rows,
                 Array<float, 2> out) {
        Step step{};
        step.rows = static_cast<std::int64_t>(token_ids.size());
        step.spans = static_cast<std::int64_t>(lengths.size());
        step.outputs = static_cast<std::int64_t>(output_rows.size());
        step.rounding = pool.rounding;
        step.table_stride = static_cast<std::int64_t>(block_table.shape(1));
        expect_shape("positions", positions, {step.rows});
        expect_shape("slots", slots, {step.rows});
        expect_shape("span_starts", span_starts, {step.spans + 1});
        expect_shape("block_table", block_table, {step.spans, step.table_stride});
        expect_shape("out", out, {step.outputs, model_.hidden()});
        expect_range("token_ids", token_ids.data(), step.rows, model_.embedding->rows());
        expect_range("output_rows", output_rows.data(), step.outputs, step.rows);
        check_pages(pages, slots, lengths, block_table);
        if (span_starts.data()[step.spans] != step.rows) throw std::invalid_argument("spans don't end at the last row");
        for (const Pages* layer : pages) step.pages.push_back(layer->view());
        step.token_ids = token_ids.data();
        step.positions = positions.data();
        step.slots = slots.data();
        step.span_starts = span_starts.data();
        step.lengths = lengths.data();
        step.block_table = block_table.data();
        step.output_rows = output_rows.data();
        step.out = out.data();
        nb::gil_scoped_release release;
        const std::lock_guard<std::mutex> one_at_a_time(mutex_);
        forge::forward(pool.pool, pool.kernels, model_, step, workspace_);
    }

private:
    const Matrix* matrix(nb::object object, std::int64_t rows = -1, std::int64_t cols = -1) {
        const Matrix* found = nb::cast<const Matrix*>(object);
        if ((rows >= 0 && found->rows() != rows) || (cols >= 0 && found->cols() != cols))
            throw std::invalid_argument("a matrix has shape [" + std::to_string(found->rows()) + ", " +
                                        std::to_string(found->cols()) + "] where [" + std::to_string(rows) + ", " +
                                        std::to_string(cols) + "] is wanted (-1: any)");
        kept_.push_back(std::move(object));
        return found;
    }

    const float* vector(const char* name, const MaybeVector& array, std::int64_t size) {
        if (!array) return nullptr;
        expect_shape(name, *array, {size});
        arrays_.push_back(*array);
        return array->data();
    }

    void check_pages(const std::vector<const Pages*>& pages, const Ids& slots, const Ids& lengths,
                     const Array<const std::int64_t, 2>& table) const {
        if (pages.size() != model_.layers.size()) throw std::invalid_argument("there must be one Pages for each layer");
        for (std::size_t i = 0; i < pages.size(); ++i) {
            const PageLayout& l = pages[i]->layout();
            const AttentionShape& a = model_.layers[i].attention;
            if (l.kv_heads != a.kv_heads || l.k_dim != a.k_dim || l.v_dim != a.v_dim)
                throw std::invalid_argument("the pages of layer " + std::to_string(i) + " don't fit its attention");
            if (l.num_blocks != pages[0]->layout().num_blocks || l.block_size != pages[0]->layout().block_size)
                throw std::invalid_argument("all layers must have pages of one shape");
        }
        if (pages.empty()) return;
        const PageLayout& l = pages[0]->layout();
        const auto columns = static_cast<std::int64_t>(table.shape(1));
        expect_range("slots", slots.data(), static_cast<std::int64_t>(slots.size()), l.num_blocks * l.block_size);
        for (std::size_t span = 0; span < lengths.size(); ++span) {
            const std::int64_t length = lengths.data()[span];
            if (length < 0 || length > columns * l.block_size)
                throw std::invalid_argument("span " + std::to_string(span) + " is longer than its blocks");
            expect_range("block_table", table.data() + static_cast<std::int64_t>(span) * columns,
                         (length + l.block_size - 1) / l.block_size, l.num_blocks);
        }
    }

    DecoderModel model_{};
    Workspace workspace_;
    std::mutex mutex_;
    std::vector<nb::object> kept_;
    std::vector<Vector> arrays_;
};

}  // namespace

void bind_model(nb::module_& m) {
    nb::class_<BoundModel>(m, "Model", "An embedding, decoder layers and a final norm, computed in one call a step.")
        .def(nb::init<nb::object, Vector, double, std::vector<double>, bool, double>(), "embedding"_a,
             "final_norm"_a.noconvert(), "eps"_a, "inverse_frequencies"_a, "interleaved"_a, "magnitude"_a)
        .def("add_layer", &BoundModel::add_layer, nb::kw_only(), "heads"_a, "kv_heads"_a, "k_dim"_a, "v_dim"_a,
             "scale"_a, "window"_a, "attention_norm"_a.noconvert(), "qkv"_a, "output"_a, "mlp_norm"_a.noconvert(),
             "gate_up"_a, "down"_a, "qkv_bias"_a.noconvert().none(), "output_bias"_a.noconvert().none(),
             "gate_up_bias"_a.noconvert().none(), "down_bias"_a.noconvert().none(), "q_norm"_a.noconvert().none(),
             "k_norm"_a.noconvert().none(), "window: how many last positions a row sees, 0: all.")
        .def("forward", &BoundModel::forward, "pool"_a, "pages"_a, "token_ids"_a.noconvert(), "positions"_a.noconvert(),
             "slots"_a.noconvert(), "span_starts"_a.noconvert(), "lengths"_a.noconvert(), "block_table"_a.noconvert(),
             "output_rows"_a.noconvert(), "out"_a.noconvert(),
             "A step as forge.interfaces.backend.StepInputs has it: the final norm of output_rows into out.");
}

}  // namespace forge
