// Python's sampler: the arrays of forge.interfaces.sampler.RowSampling, in the order of its fields, checked and passed on.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <optional>

#include "bind_operations.hpp"
#include "bindings.hpp"
#include "operations.hpp"
#include "philox.hpp"
#include "sample.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge {

namespace {

template <class T>
using Column = Array<const T, 1>;
template <class T>
using Maybe = std::optional<Array<const T, 1>>;

// A NumPy array [rows] or [rows, columns] that owns its memory.
template <class T>
nb::object new_array(std::int64_t rows, std::int64_t columns, int dimensions, T*& data) {
    data = new T[static_cast<std::size_t>(std::max<std::int64_t>(rows * columns, 1))];
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    const std::size_t shape[2] = {static_cast<std::size_t>(rows), static_cast<std::size_t>(columns)};
    return nb::cast(nb::ndarray<nb::numpy, T>(data, static_cast<std::size_t>(dimensions), shape, owner));
}

// Ids of all rows: starts must ascend from 0 to the number of ids, ids must be in the vocabulary.
void expect_ragged(const char* name, const Column<std::int64_t>& starts, const Column<std::int64_t>& ids,
                   std::int64_t rows, std::int64_t vocabulary) {
    const std::string of(name);
    expect_shape((of + "_starts").c_str(), starts, {rows + 1});
    const auto count = static_cast<std::int64_t>(ids.size());
    const std::int64_t* at = starts.data();
    bool ascending = at[0] == 0 && at[rows] == count;
    for (std::int64_t row = 0; row < rows; ++row) ascending = ascending && at[row] <= at[row + 1];
    if (!ascending) throw std::invalid_argument(of + "_starts must ascend from 0 to the number of ids");
    expect_range((of + "_ids").c_str(), ids.data(), count, vocabulary);
}

template <class T>
const T* column(const char* name, const Column<T>& values, std::int64_t rows) {
    expect_shape(name, values, {rows});
    return values.data();
}

template <class T>
const T* required(const char* name, const Maybe<T>& values, std::int64_t count) {
    if (!values) throw std::invalid_argument(std::string(name) + " is missing");
    return column<T>(name, *values, count);
}

nb::tuple run_sample(BoundPool& pool, Array<float, 2> logits, Column<float> temperature, Column<std::int32_t> top_k,
                     Column<float> top_p, Column<float> min_p, Column<std::uint64_t> seed,
                     Column<std::uint32_t> choice, Column<std::uint32_t> position, Maybe<float> repetition_penalty,
                     Maybe<float> presence_penalty, Maybe<float> frequency_penalty, Maybe<std::int64_t> history_starts,
                     Maybe<std::int64_t> history_ids, Maybe<std::int64_t> history_counts,
                     Maybe<std::int64_t> bias_starts, Maybe<std::int64_t> bias_ids, Maybe<float> bias_values,
                     Maybe<std::int64_t> banned_starts, Maybe<std::int64_t> banned_ids,
                     std::optional<Array<const std::int32_t, 2>> masks, Maybe<std::int64_t> targets,
                     std::optional<std::int64_t> logprobs) {
    SampleCall call{};
    const auto rows = static_cast<std::int64_t>(logits.shape(0)), words = static_cast<std::int64_t>(logits.shape(1));
    call.logits = logits.data();
    call.rows = rows;
    call.vocabulary = call.stride = words;
    if (words < 1 || words > INT32_MAX) throw std::invalid_argument("logits need a column for each id, at least one");
    call.temperature = column("temperature", temperature, rows);
    call.top_k = column("top_k", top_k, rows);
    call.top_p = column("top_p", top_p, rows);
    call.min_p = column("min_p", min_p, rows);
    call.seed = column("seed", seed, rows);
    call.choice = column("choice", choice, rows);
    call.position = column("position", position, rows);
    if (history_starts && history_ids && history_counts) {
        expect_ragged("history", *history_starts, *history_ids, rows, words);
        call.history_starts = history_starts->data();
        call.history_ids = history_ids->data();
        call.history_counts =
            required("history_counts", history_counts, static_cast<std::int64_t>(history_ids->size()));
        call.repetition_penalty = required("repetition_penalty", repetition_penalty, rows);
        call.presence_penalty = required("presence_penalty", presence_penalty, rows);
        call.frequency_penalty = required("frequency_penalty", frequency_penalty, rows);
    }
    if (bias_starts && bias_ids && bias_values) {
        expect_ragged("bias", *bias_starts, *bias_ids, rows, words);
        call.bias_starts = bias_starts->data();
        call.bias_ids = bias_ids->data();
        call.bias_values = required("bias_values", bias_values, static_cast<std::int64_t>(bias_ids->size()));
    }
    if (banned_starts && banned_ids) {
        expect_ragged("banned", *banned_starts, *banned_ids, rows, words);
        call.banned_starts = banned_starts->data();
        call.banned_ids = banned_ids->data();
    }
    if (masks) {
        call.mask_words = (words + 31) / 32;
        expect_shape("masks", *masks, {rows, call.mask_words});
        call.masks = masks->data();
    }
    if (targets) {
        call.targets = column("targets", *targets, rows);
        for (std::int64_t row = 0; row < rows; ++row) {
            if (call.targets[row] >= words) {
                throw std::invalid_argument("targets has " + std::to_string(call.targets[row]) +
                                            ", outside the vocabulary of " + std::to_string(words));
            }
        }
    }
    nb::object tokens = new_array(rows, 1, 1, call.tokens), scores = nb::none(), ids = nb::none(), top = nb::none();
    if (logprobs) {
        if (*logprobs < 0 || *logprobs > words) {
            throw std::invalid_argument("logprobs asks for " + std::to_string(*logprobs) + " alternatives of " +
                                        std::to_string(words));
        }
        call.alternatives = *logprobs;
        scores = new_array(rows, 1, 1, call.logprobs);
        ids = new_array(rows, *logprobs, 2, call.top_ids);
        top = new_array(rows, *logprobs, 2, call.top_logprobs);
    }
    const Operations& operations = *pool.kernels.operations;
    {
        nb::gil_scoped_release release;
        const auto scratch = pool.scratch(operations.sample_scratch(words) * pool.pool.size());
        call.scratch = reinterpret_cast<std::byte*>(scratch.bytes);
        pool.pool.run([&](Worker& worker) { operations.sample(worker, call); }, rows);
    }
    for (std::int64_t row = 0; row < rows; ++row) {
        if (call.tokens[row] == kNoToken) {
            throw std::invalid_argument("the logits of row " + std::to_string(row) +
                                        " are not finite, or no token is allowed");
        }
    }
    return nb::make_tuple(tokens, scores, ids, top);
}

nb::object run_uniforms(Column<std::uint64_t> seed, Column<std::uint32_t> choice, Column<std::uint32_t> position) {
    const auto count = static_cast<std::int64_t>(seed.size());
    column("choice", choice, count);
    column("position", position, count);
    double* values = nullptr;
    nb::object result = new_array(count, 1, 1, values);
    for (std::int64_t i = 0; i < count; ++i) {
        values[i] = philox_uniform(seed.data()[i], choice.data()[i], position.data()[i]);
    }
    return result;
}

}  // namespace

void bind_sample(nb::module_& m) {
    m.def("sample", run_sample, "pool"_a, "logits"_a.noconvert(), "temperature"_a.noconvert(), "top_k"_a.noconvert(),
          "top_p"_a.noconvert(), "min_p"_a.noconvert(), "seed"_a.noconvert(), "choice"_a.noconvert(), "position"_a.noconvert(),
          "repetition_penalty"_a.noconvert() = nb::none(), "presence_penalty"_a.noconvert() = nb::none(),
          "frequency_penalty"_a.noconvert() = nb::none(), "history_starts"_a.noconvert() = nb::none(),
          "history_ids"_a.noconvert() = nb::none(), "history_counts"_a.noconvert() = nb::none(),
          "bias_starts"_a.noconvert() = nb::none(), "bias_ids"_a.noconvert() = nb::none(), "bias_values"_a.noconvert() = nb::none(),
          "banned_starts"_a.noconvert() = nb::none(), "banned_ids"_a.noconvert() = nb::none(), "masks"_a.noconvert() = nb::none(),
          "targets"_a.noconvert() = nb::none(), "logprobs"_a = nb::none(),
          "One token a row from logits [R, vocabulary], which are overwritten; the other arguments are the fields of "
          "RowSampling. Returns (tokens, logprobs, top_ids, top_logprobs), the last three None unless asked for.");
    m.def("uniforms", run_uniforms, "seed"_a.noconvert(), "choice"_a.noconvert(), "position"_a.noconvert(),
          "The random number of each row, float64 in [0, 1): the same bits as forge.interfaces.sampler.uniforms.");
}

}  // namespace forge
