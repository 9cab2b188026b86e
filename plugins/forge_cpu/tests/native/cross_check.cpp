// A program without Python that compares every instruction set of the processor it runs on with the portable kernels, and
// rows alone with rows among others: for processors that are emulated (scripts/test_neon.sh), where Python isn't at hand.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "attention.hpp"
#include "isa.hpp"
#include "linear.hpp"
#include "matrix.hpp"
#include "operations.hpp"
#include "pages.hpp"
#include "pool.hpp"

using namespace forge;

namespace {

int failures = 0;

void expect(bool holds, const char* isa, const std::string& what) {
    if (holds) return;
    ++failures;
    std::printf("FAILED on %s: %s\n", isa, what.c_str());
}

double relative_error(const std::vector<float>& found, const std::vector<float>& wanted) {
    double error = 0, size = 0;
    for (size_t i = 0; i < found.size(); ++i) {
        if (!std::isfinite(found[i])) return INFINITY;
        error += std::pow(double{found[i]} - wanted[i], 2);
        size += std::pow(double{wanted[i]}, 2);
    }
    return std::sqrt(error / (size + 1e-30));
}

// A file's bytes for a matrix: anything in the integers, small numbers in the float16 scales.
std::vector<uint8_t> random_rows(const EncodingInfo& info, int64_t rows, int64_t cols, std::mt19937& rng) {
    std::vector<uint8_t> data(static_cast<size_t>(rows * cols / info.file_block * info.file_bytes));
    const std::string name = info.name;
    if (!info.quantised) {  // every float of them an ordinary one: 0.5 to 2, either sign
        for (auto& byte : data) byte = static_cast<uint8_t>(rng());
        const size_t size = static_cast<size_t>(info.file_bytes);
        for (size_t i = size - 1; i < data.size(); i += size)
            data[i] = static_cast<uint8_t>((data[i] & 0x80) | (name == "F16" ? 0x38 : 0x3f));
        return data;
    }
    for (auto& byte : data) byte = static_cast<uint8_t>(rng() & 0x3f);  // no float16 among them is large or infinite
    return data;
}

std::vector<float> multiply(Pool& pool, const Kernels& kernels, const Matrix& matrix, const float* x, int64_t rows,
                            Rounding rounding) {
    const int64_t cols = matrix.cols();
    std::unique_ptr<void, void (*)(void*)> memory(
        std::aligned_alloc(64, static_cast<size_t>(activation_bytes(rows, cols, rounding.terms) + 64)), std::free);
    Activations blocks = activations_in(memory.get(), rows, cols, kernels.tile_rows, rounding);
    std::vector<float> y(static_cast<size_t>(rows * matrix.rows()), NAN);
    pool.run([&](Worker& worker) {
        if (matrix.any_quantised()) kernels.quantize_rows(worker, x, cols, blocks);
        worker.barrier();
        kernels.linear(worker, {matrix.view(), &blocks, x, cols, rows, y.data(), matrix.rows(), nullptr, false});
    });
    return y;
}

void check_linear(const Kernels& kernels, const Kernels& portable, const EncodingInfo& info, Rounding rounding) {
    constexpr int64_t kRows = 70, kOut = 53, kCols = 512;
    std::mt19937 rng(7);
    std::normal_distribution<float> normal;
    Pool one(1), two(2);
    Matrix matrix({{info.name, kOut}}, kCols);
    const auto data = random_rows(info, kOut, kCols, rng);
    two.run([&](Worker& worker) { matrix.pack(worker, 0, 0, kOut, data.data()); });
    std::vector<float> x(kRows * kCols);
    for (auto& value : x) value = normal(rng);
    for (int64_t row = 0; row < kRows; row += 3) x[static_cast<size_t>(row * kCols + 100)] *= 60;
    const std::string what = std::string(info.name) + ", terms " + std::to_string(rounding.terms) +
                             (rounding.loud > 0 ? ", auto" : "");
    const auto found = multiply(two, kernels, matrix, x.data(), kRows, rounding);
    const double error = relative_error(found, multiply(one, portable, matrix, x.data(), kRows, rounding));
    // Integer sums are exact on every set; floats are added in the same order, but the portable kernels round products.
    expect(error < 4e-6, kernels.isa, what + ": differs from portable by " + std::to_string(error));
    for (int64_t count : {1, 2, 3, 5, 7, 16, 33}) {
        for (int64_t row = 0; row + count <= kRows; row += 13) {
            const auto some = multiply(one, kernels, matrix, x.data() + row * kCols, count, rounding);
            expect(std::memcmp(some.data(), found.data() + row * kOut, some.size() * 4) == 0, kernels.isa,
                   what + ": rows depend on the batch");
        }
    }
}

std::vector<float> attend(Pool& pool, const Kernels& kernels, PageFormat format, int64_t begin, int64_t end, bool rounded) {
    const AttentionShape shape{6, 2, 40, 24, 0, 0.2f};
    constexpr int64_t kLength = 300, kBlockSize = 16;
    Pages pages(page_layout(20, kBlockSize, shape.kv_heads, shape.k_dim, shape.v_dim, format));
    std::mt19937 rng(3);
    std::normal_distribution<float> normal;
    std::vector<float> k(kLength * 80), v(kLength * 48), q(kLength * 240);
    for (auto* values : {&k, &v, &q})
        for (auto& value : *values) value = normal(rng);
    std::vector<int64_t> slots(kLength), table(20);
    for (int64_t i = 0; i < 20; ++i) table[static_cast<size_t>(i)] = (i * 7) % 20;
    for (int64_t i = 0; i < kLength; ++i)
        slots[static_cast<size_t>(i)] = table[static_cast<size_t>(i / kBlockSize)] * kBlockSize + i % kBlockSize;
    const Operations& operations = *kernels.operations;
    operations.kv_write({pages.view(), slots.data(), k.data(), 80, v.data(), 48}, 0, kLength);
    const int64_t starts[] = {0, end - begin}, lengths[] = {end};
    const AttentionPlan plan = plan_attention(shape, starts, lengths, 1, pool.size(), kMostPartialFloats);
    AttentionCall call = attention_call(plan);
    std::vector<float> out(static_cast<size_t>((end - begin) * 144), NAN), partials(static_cast<size_t>(plan.partial_floats));
    const int64_t each = operations.attention_scratch(shape, pages.layout());
    std::unique_ptr<void, void (*)(void*)> scratch(
        std::aligned_alloc(64, static_cast<size_t>(each * pool.size())), std::free);
    call.pages = pages.view();
    call.q = q.data() + begin * 240;
    call.q_stride = 240;
    call.block_table = table.data();
    call.table_stride = 20;
    call.out = out.data();
    call.out_stride = 144;
    call.partials = partials.data();
    call.scratch = static_cast<std::byte*>(scratch.get());
    call.rounded = rounded;
    pool.run([&](Worker& worker) { operations.attention(worker, call); });
    return out;
}

void check_attention(const Kernels& kernels, const Kernels& portable, PageFormat format, bool rounded) {
    Pool one(1), two(2);
    const std::string what = std::string("attention, ") + page_format_name(format) + (rounded ? ", rounded" : "");
    const auto whole = attend(two, kernels, format, 0, 300, rounded);
    const double error = relative_error(whole, attend(one, portable, format, 0, 300, false));
    expect(error < (rounded ? 1e-2 : 1e-5), kernels.isa, what + ": differs from portable by " + std::to_string(error));
    for (int64_t begin = 0; begin < 300; begin += 37) {
        const int64_t end = std::min<int64_t>(300, begin + 1 + begin % 20);
        const auto some = attend(one, kernels, format, begin, end, rounded);
        expect(std::memcmp(some.data(), whole.data() + begin * 144, some.size() * 4) == 0, kernels.isa,
               what + ": rows depend on the chunk");
    }
}

}  // namespace

int main() {
    const Kernels& portable = find_kernels("portable");
    for (const Kernels* kernels : runnable_kernels()) {
        for (const EncodingInfo& info : kEncodingInfo)
            for (const Rounding rounding : {Rounding{1, 0.f}, Rounding{2, 0.f}, Rounding{2, 0.06f}})
                check_linear(*kernels, portable, info, rounding);
        for (const PageFormat format : {PageFormat::f32, PageFormat::f16, PageFormat::bf16, PageFormat::int8})
            for (const bool rounded : {false, true}) check_attention(*kernels, portable, format, rounded);
        std::printf("%s: checked\n", kernels->isa);
    }
    return failures == 0 ? 0 : 1;
}
