// Python's Pages and attention: checks shapes and ranges, then runs the kernels in a region of a pool.
#include <nanobind/stl/string.h>

#include <algorithm>
#include <stdexcept>

#include "attention.hpp"
#include "bind_operations.hpp"
#include "bindings.hpp"
#include "operations.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge {

namespace {

using Ids = Array<const std::int64_t, 1>;

std::string text(std::int64_t value) { return std::to_string(value); }

void write_pages(const Pages& pages, BoundPool& pool, Ids slots, Array<const float, 3> k, Array<const float, 3> v) {
    const PageLayout& l = pages.layout();
    const auto rows = static_cast<std::int64_t>(slots.size());
    expect_shape("k", k, {rows, l.kv_heads, l.k_dim});
    expect_shape("v", v, {rows, l.kv_heads, l.v_dim});
    expect_range("slots", slots.data(), rows, l.num_blocks * l.block_size);
    const KvWriteCall call{pages.view(), slots.data(), k.data(), l.kv_heads * l.k_dim, v.data(), l.kv_heads * l.v_dim};
    const Operations& operations = *pool.kernels.operations;
    nb::gil_scoped_release release;
    pool.pool.run(
        [&](Worker& worker) {
            worker.share(rows, 8, [&](std::int64_t begin, std::int64_t end) { operations.kv_write(call, begin, end); });
        },
        (rows + 7) / 8);
}

void read_pages(const Pages& pages, Ids blocks, Array<float, 3> k_out, Array<float, 3> v_out) {
    const PageLayout& l = pages.layout();
    const auto count = static_cast<std::int64_t>(blocks.size());
    expect_shape("k_out", k_out, {count * l.block_size, l.kv_heads, l.k_dim});
    expect_shape("v_out", v_out, {count * l.block_size, l.kv_heads, l.v_dim});
    expect_range("blocks", blocks.data(), count, l.num_blocks);
    const KvReadCall call{pages.view(), blocks.data(), k_out.data(), v_out.data()};
    const Operations& operations = *runnable_kernels().front()->operations;
    nb::gil_scoped_release release;
    operations.kv_read(call, 0, count);
}

// What a span looks at must be in its row of the table, and there must be blocks of these numbers.
void check_tables(const PageLayout& l, const Array<const std::int64_t, 2>& table, const Ids& lengths) {
    const auto columns = static_cast<std::int64_t>(table.shape(1));
    for (std::size_t span = 0; span < lengths.size(); ++span) {
        const std::int64_t length = lengths.data()[span];
        if (length < 0 || length > columns * l.block_size) {
            throw std::invalid_argument("span " + std::to_string(span) + " has " + text(length) +
                                        " positions, its blocks hold " + text(columns * l.block_size));
        }
        const std::int64_t used = (length + l.block_size - 1) / l.block_size;
        expect_range("block_table", table.data() + static_cast<std::int64_t>(span) * columns, used, l.num_blocks);
    }
}

void run_attention(BoundPool& pool, Array<const float, 3> q, const Pages& pages, Ids span_starts, Ids lengths,
                   Array<const std::int64_t, 2> block_table, double scale, std::int64_t window, Array<float, 3> out) {
    const PageLayout& l = pages.layout();
    const auto rows = static_cast<std::int64_t>(q.shape(0)), heads = static_cast<std::int64_t>(q.shape(1));
    const auto spans = static_cast<std::int64_t>(lengths.size());
    expect_shape("q", q, {rows, heads, l.k_dim});
    expect_shape("out", out, {rows, heads, l.v_dim});
    expect_shape("span_starts", span_starts, {spans + 1});
    expect_shape("block_table", block_table, {spans, static_cast<std::int64_t>(block_table.shape(1))});
    if (span_starts.data()[spans] != rows) {
        throw std::invalid_argument("spans end at row " + text(span_starts.data()[spans]) + ", q has " + text(rows));
    }
    check_tables(l, block_table, lengths);
    const AttentionShape shape{heads, l.kv_heads, l.k_dim, l.v_dim, window, static_cast<float>(scale)};
    const AttentionPlan plan =
        plan_attention(shape, span_starts.data(), lengths.data(), spans, pool.pool.size(), kMostPartialFloats);
    const Operations& operations = *pool.kernels.operations;
    const std::int64_t each = operations.attention_scratch(shape, l);
    AttentionCall call = attention_call(plan);
    call.pages = pages.view();
    call.q = q.data();
    call.q_stride = heads * l.k_dim;
    call.block_table = block_table.data();
    call.table_stride = static_cast<std::int64_t>(block_table.shape(1));
    call.out = out.data();
    call.out_stride = heads * l.v_dim;
    call.rounded = pool.rounding.coarse();
    nb::gil_scoped_release release;
    const auto scratch = pool.scratch(each * pool.pool.size() + plan.partial_floats * 4);
    call.scratch = reinterpret_cast<std::byte*>(scratch.bytes);
    call.partials = reinterpret_cast<float*>(call.scratch + each * pool.pool.size());
    pool.pool.run([&](Worker& worker) { operations.attention(worker, call); });
}

}  // namespace

void bind_attention(nb::module_& m) {
    nb::class_<Pages>(m, "Pages", "Paged keys and values of one layer, zeroed; memory is resident where it's written.")
        .def(
            "__init__",
            [](Pages* self, std::int64_t num_blocks, std::int64_t block_size, std::int64_t kv_heads,
               std::int64_t k_dim, std::int64_t v_dim, const std::string& format) {
                new (self)
                    Pages(page_layout(num_blocks, block_size, kv_heads, k_dim, v_dim, page_format(format)));
            },
            "num_blocks"_a, "block_size"_a, "kv_heads"_a, "k_dim"_a, "v_dim"_a,
            "format"_a, "format: f32, f16, bf16 or int8 (a scale per position and head).")
        .def_prop_ro("num_blocks", [](const Pages& self) { return self.layout().num_blocks; })
        .def_prop_ro("block_size", [](const Pages& self) { return self.layout().block_size; })
        .def_prop_ro("kv_heads", [](const Pages& self) { return self.layout().kv_heads; })
        .def_prop_ro("k_dim", [](const Pages& self) { return self.layout().k_dim; })
        .def_prop_ro("v_dim", [](const Pages& self) { return self.layout().v_dim; })
        .def_prop_ro("format", [](const Pages& self) { return page_format_name(self.layout().format); })
        .def_prop_ro("nbytes", [](const Pages& self) { return self.layout().total_bytes(); })
        .def("write", write_pages, "pool"_a, "slots"_a.noconvert(), "k"_a.noconvert(), "v"_a.noconvert(),
             "Store k [n, kv_heads, k_dim] and v [n, kv_heads, v_dim] at slots [n].")
        .def("read", read_pages, "blocks"_a.noconvert(), "k_out"_a.noconvert(), "v_out"_a.noconvert(),
             "Blocks [m] as stored, into k_out [m * block_size, kv_heads, k_dim] and v_out alike.");
    m.def("attention", run_attention, "pool"_a, "q"_a.noconvert(), "pages"_a, "span_starts"_a.noconvert(),
          "lengths"_a.noconvert(), "block_table"_a.noconvert(), "scale"_a, "window"_a, "out"_a.noconvert(),
          "Causal attention of q [n, heads, k_dim] on the stored keys and values, into out [n, heads, v_dim]. "
          "window: how many last positions a row sees, 0: all.");
}

}  // namespace forge
