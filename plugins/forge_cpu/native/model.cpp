// The order of operations in a step, and who does what between two barriers. Compiled once: the arithmetic is in the
// kernels, which are reached through their tables.
#include "model.hpp"


#include <algorithm>
#include <cstring>
#include <memory>

#include "linear.hpp"

namespace forge {

std::byte* Workspace::of(int64_t bytes) {
    const auto wanted = static_cast<size_t>(bytes) + 64;
    if (memory_.size() < wanted) {
        memory_ = {};  // rather than old and new at once
        memory_.resize(wanted);
    }
    return reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(memory_.data()) + 63) & ~uintptr_t{63});
}

namespace {

// With so few rows every worker prepares all of them for itself: that costs less than waiting for each other.
constexpr int64_t kPrivateRows = 2;

// The MLP takes so many rows at a time: its inner activations are several times as wide as the model, and should stay in
// the caches between its two products.
constexpr int64_t kMlpRows = 128;

// How much louder than elsewhere a block of activations may be before it's rounded twice (Rounding): what these products
// lose matters less, measured by what the model's log-probabilities lose for the time that second terms take.
constexpr float kOutputIsRobust = 3.f, kDownIsRobust = 2.f;

int64_t padded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Hands out pieces of one block of memory; with a null base it only counts.
class Pieces {
public:
    explicit Pieces(std::byte* base) : base_(base) {}

    template <class T>
    T* take(int64_t count) {
        const int64_t at = used_;
        used_ += padded(count * static_cast<int64_t>(sizeof(T)));
        return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
    }
    int64_t used() const { return used_; }

private:
    std::byte* base_;
    int64_t used_ = 0;
};

// Rows that are about to be multiplied: as floats and as int8 blocks. A worker has one of its own, for few rows, beside
// the one that all share.
struct Operand {
    float* floats;
    void* blocks;
};

class Forward {
public:
    Forward(Pool& pool, const Kernels& kernels, const DecoderModel& model, const Step& step, Workspace& workspace)
        : kernels_(kernels), ops_(*kernels.operations), model_(model), step_(step), hidden_(model.hidden()) {
        for (const DecoderLayer& layer : model.layers) measure(layer);
        for (const DecoderLayer& layer : model.layers) plans_.push_back(plan_of(layer.attention, pool.size()));
        Pieces counting(nullptr);
        divide(counting, pool.size());
        Pieces pieces(workspace.of(counting.used()));
        divide(pieces, pool.size());
    }

    void operator()(Worker& worker) {
        embed(worker);
        for (size_t i = 0; i < model_.layers.size(); ++i) {
            const DecoderLayer& layer = model_.layers[i];
            const PagesView& pages = step_.pages[i];
            attend(worker, layer, pages, *plans_[i]);
            int64_t rows = step_.rows;
            if (i + 1 == model_.layers.size()) {  // what isn't asked for ends here
                gather(worker);
                rows = step_.outputs;
            }
            const float* attended = i + 1 == model_.layers.size() ? attended_out_ : attended_;
            float* x = i + 1 == model_.layers.size() ? x_out_ : x_;
            project(worker, layer, attended, x, rows);
            for (int64_t row = 0; row < rows; row += kMlpRows)
                mlp(worker, layer, x + row * hidden_, std::min(kMlpRows, rows - row));
        }
        worker.share(step_.outputs, 1, [&](int64_t begin, int64_t end) {
            ops_.rms_norm({x_out_, hidden_, model_.final_norm, hidden_, model_.eps, step_.out, hidden_}, begin, end);
        });
    }

private:
    void measure(const DecoderLayer& layer) {
        const AttentionShape& a = layer.attention;
        qkv_width_ = std::max(qkv_width_, layer.qkv->rows());
        attended_width_ = std::max(attended_width_, a.heads * a.v_dim);
        ffn_ = std::max(ffn_, layer.down->cols());
    }

    // Layers of one shape share a plan.
    const AttentionPlan* plan_of(const AttentionShape& shape, int threads) {
        for (size_t i = 0; i < plans_.size(); ++i)
            if (std::memcmp(&plans_[i]->shape, &shape, sizeof shape) == 0) return plans_[i];
        owned_.push_back(std::make_unique<AttentionPlan>(plan_attention(
            shape, step_.span_starts, step_.lengths, step_.spans, threads, kMostPartialFloats)));
        return owned_.back().get();
    }

    void divide(Pieces& pieces, int threads) {
        const int64_t rows = step_.rows, widest = std::max({hidden_, attended_width_, ffn_});
        const int64_t mlp_rows = std::min(rows, kMlpRows), few = std::min(rows, kPrivateRows);
        x_ = pieces.take<float>(rows * hidden_);
        qkv_ = pieces.take<float>(rows * qkv_width_);
        attended_ = pieces.take<float>(rows * attended_width_);
        x_out_ = pieces.take<float>(step_.outputs * hidden_);
        attended_out_ = pieces.take<float>(step_.outputs * attended_width_);
        gate_up_ = pieces.take<float>(mlp_rows * 2 * ffn_);
        pairs_ = static_cast<int64_t>(model_.inverse_frequencies.size());
        table_ = pieces.take<float>(rows * 2 * pairs_);
        const int64_t tall = std::max(rows * std::max(hidden_, attended_width_), mlp_rows * ffn_);
        const int64_t terms = step_.rounding.terms;
        shared_ = {pieces.take<float>(tall),
                   pieces.take<std::byte>(std::max(activation_bytes(rows, std::max(hidden_, attended_width_), terms),
                                                   activation_bytes(mlp_rows, ffn_, terms)))};
        private_.resize(threads);
        for (Operand& own : private_)
            own = {pieces.take<float>(few * widest), pieces.take<std::byte>(activation_bytes(few, widest, terms))};
        int64_t partials = 0, scratch = 0;
        for (size_t i = 0; i < plans_.size(); ++i) {
            partials = std::max(partials, plans_[i]->partial_floats);
            scratch = std::max(scratch, ops_.attention_scratch(plans_[i]->shape, step_.pages[i].layout));
        }
        partials_ = pieces.take<float>(partials);
        scratch_ = pieces.take<std::byte>(scratch * threads);
    }

    void embed(Worker& worker) {
        worker.share(step_.rows, 1, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row)
                model_.embedding->dequantize_row(step_.token_ids[row], x_ + row * hidden_);
            rope_table(step_.positions, model_.inverse_frequencies.data(), pairs_, model_.magnitude, table_, begin, end);
        });
        worker.barrier();
    }

    // y (+)= prepare(rows)·Wᵀ + bias, where prepare(floats, begin, end) writes rows of `width` floats and doesn't read
    // y. robust: how much louder than elsewhere blocks with one term may be. Ends with a barrier.
    template <class Prepare>
    void multiply(Worker& worker, const Matrix& weights, const float* bias, int64_t rows, float* y, int64_t ldy, bool add,
                  float robust, Prepare&& prepare) {
        if (rows == 0) return;
        const int64_t width = weights.cols();
        const bool own = rows <= kPrivateRows, quantised = weights.any_quantised();
        const Operand& operand = own ? private_[worker.index] : shared_;
        const Rounding rounding{step_.rounding.terms, step_.rounding.loud * robust};
        Activations blocks = activations_in(operand.blocks, rows, width, kernels_.tile_rows, rounding);
        const auto make = [&](int64_t begin, int64_t end) {
            prepare(operand.floats, begin, end);
            if (quantised) kernels_.quantize_range(operand.floats, blocks, begin, end);
        };
        if (own) {
            make(0, rows);
        } else {
            worker.share(rows, 1, make);
            worker.barrier();
        }
        kernels_.linear(worker, {weights.view(), &blocks, operand.floats, width, rows, y, ldy, bias, add});
        worker.barrier();
    }

    void attend(Worker& worker, const DecoderLayer& layer, const PagesView& pages, const AttentionPlan& plan) {
        const AttentionShape& a = layer.attention;
        const int64_t q_width = a.heads * a.k_dim, k_width = a.kv_heads * a.k_dim, width = qkv_width_;
        multiply(worker, *layer.qkv, layer.qkv_bias, step_.rows, qkv_, width, false, 1.f,
                 [&](float* to, int64_t begin, int64_t end) {
                     ops_.rms_norm({x_, hidden_, layer.attention_norm, hidden_, model_.eps, to, hidden_}, begin, end);
                 });
        float *k = qkv_ + q_width, *v = k + k_width;
        // A row's queries and its key and value are two chunks: of one row, two workers take one each.
        worker.share(2 * step_.rows, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = i / 2;
                if (i % 2 == 0) {
                    turn_heads(qkv_, layer.q_norm, a.heads, a.k_dim, row);
                } else {
                    turn_heads(k, layer.k_norm, a.kv_heads, a.k_dim, row);
                    ops_.kv_write({pages, step_.slots, k, width, v, width}, row, row + 1);
                }
            }
        });
        worker.barrier();
        AttentionCall call = attention_call(plan);
        call.pages = pages;
        call.q = qkv_;
        call.q_stride = width;
        call.block_table = step_.block_table;
        call.table_stride = step_.table_stride;
        call.out = attended_;
        call.out_stride = attended_width_;
        call.partials = partials_;
        call.scratch = scratch_;
        call.rounded = step_.rounding.coarse();
        ops_.attention(worker, call);
        worker.barrier();
    }

    // Norm, if there is a weight for it, and RoPE, in place.
    void turn_heads(float* x, const float* weight, int64_t heads, int64_t dim, int64_t row) {
        float* first = x + row * qkv_width_;
        if (weight != nullptr) ops_.rms_norm({first, dim, weight, dim, model_.eps, first, dim}, 0, heads);
        ops_.rope({x, qkv_width_, heads, dim, pairs_, model_.interleaved, table_, x, qkv_width_}, row, row + 1);
    }

    // The rows that are asked for, side by side.
    void gather(Worker& worker) {
        worker.share(step_.outputs, 1, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                const int64_t row = step_.output_rows[i];
                std::memcpy(x_out_ + i * hidden_, x_ + row * hidden_, hidden_ * sizeof(float));
                std::memcpy(attended_out_ + i * attended_width_, attended_ + row * attended_width_,
                            attended_width_ * sizeof(float));
            }
        });
        worker.barrier();
    }

    void project(Worker& worker, const DecoderLayer& layer, const float* attended, float* x, int64_t rows) {
        const int64_t width = layer.output->cols();
        multiply(worker, *layer.output, layer.output_bias, rows, x, hidden_, true, kOutputIsRobust,
                 [&](float* to, int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row)
                         std::memcpy(to + row * width, attended + row * attended_width_, width * sizeof(float));
                 });
    }

    void mlp(Worker& worker, const DecoderLayer& layer, float* x, int64_t rows) {
        const int64_t ffn = layer.down->cols();
        multiply(worker, *layer.gate_up, layer.gate_up_bias, rows, gate_up_, 2 * ffn, false, 1.f,
                 [&](float* to, int64_t begin, int64_t end) {
                     ops_.rms_norm({x, hidden_, layer.mlp_norm, hidden_, model_.eps, to, hidden_}, begin, end);
                 });
        multiply(worker, *layer.down, layer.down_bias, rows, x, hidden_, true, kDownIsRobust,
                 [&](float* to, int64_t begin, int64_t end) {
                     ops_.silu_mul({gate_up_, 2 * ffn, ffn, to, ffn}, begin, end);
                 });
    }

    const Kernels& kernels_;
    const Operations& ops_;
    const DecoderModel& model_;
    const Step& step_;
    const int64_t hidden_;
    int64_t qkv_width_ = 0, attended_width_ = 0, ffn_ = 0, pairs_ = 0;
    std::vector<std::unique_ptr<AttentionPlan>> owned_;
    std::vector<const AttentionPlan*> plans_;   // one a layer

    float *x_, *qkv_, *attended_, *x_out_, *attended_out_, *gate_up_, *table_, *partials_;
    Operand shared_;
    std::vector<Operand> private_;
    std::byte* scratch_;
};

}  // namespace

void forward(Pool& pool, const Kernels& kernels, const DecoderModel& model, const Step& step, Workspace& workspace) {
    Forward body(pool, kernels, model, step, workspace);
    pool.run(body);
}

}  // namespace forge
