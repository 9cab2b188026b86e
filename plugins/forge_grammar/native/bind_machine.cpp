// Python's Vocabulary, Grammar and Matcher.
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bindings.hpp"
#include "matcher.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge::grammar {
namespace {

using Row = nb::ndarray<int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

std::vector<std::string> strings(const std::vector<nb::bytes>& list) {
    std::vector<std::string> out;
    out.reserve(list.size());
    for (const nb::bytes& x : list) out.emplace_back(x.c_str(), x.size());
    return out;
}

uint32_t* row_of(int32_t* data) { return reinterpret_cast<uint32_t*>(data); }

[[noreturn]] void wrong_length(size_t words, size_t given) {
    throw std::invalid_argument("a mask row has " + std::to_string(words) + " words, not " + std::to_string(given));
}

void fill(Matcher& self, const Row& row) {
    const size_t words = self.vocabulary().words();
    if (row.shape(0) != words) wrong_length(words, row.shape(0));
    const nb::gil_scoped_release released;
    self.fill(row_of(row.data()));
}

void fill_batch(const std::vector<std::shared_ptr<Matcher>>& matchers, const Rows& rows) {
    if (rows.shape(0) != matchers.size())
        throw std::invalid_argument(std::to_string(matchers.size()) + " matchers for " + std::to_string(rows.shape(0)) +
                                    " rows");
    for (const auto& matcher : matchers) {
        if (!matcher) throw std::invalid_argument("None is no matcher");
        if (rows.shape(1) != matcher->vocabulary().words()) wrong_length(matcher->vocabulary().words(), rows.shape(1));
    }
    const nb::gil_scoped_release released;
    for (size_t i = 0; i < matchers.size(); ++i) matchers[i]->fill(row_of(rows.data()) + i * rows.shape(1));
}

std::shared_ptr<Vocabulary> make_vocabulary(const std::vector<nb::bytes>& token_bytes,
                                            const std::vector<int64_t>& special, const std::vector<int64_t>& eos,
                                            int64_t width, int64_t cache_bytes) {
    if (cache_bytes < 0) throw std::invalid_argument("cache_bytes is negative");
    std::vector<std::string> tokens = strings(token_bytes);
    const nb::gil_scoped_release released;
    return std::make_shared<Vocabulary>(std::move(tokens), special, eos, width, static_cast<size_t>(cache_bytes));
}

std::shared_ptr<Grammar> make_grammar(std::shared_ptr<Vocabulary> vocabulary, const std::vector<nb::bytes>& languages,
                                      const std::vector<nb::bytes>& texts, const nb::bytes& words) {
    if (!vocabulary) throw std::invalid_argument("None is no vocabulary");
    const std::vector<std::string> automata = strings(languages);
    std::vector<std::string> pool = strings(texts);
    const std::string program(words.c_str(), words.size());
    const nb::gil_scoped_release released;
    return std::make_shared<Grammar>(std::move(vocabulary), automata, std::move(pool), program);
}

}  // namespace

void bind_machine(nb::module_& m) {
    nb::class_<Vocabulary>(m, "Vocabulary",
                           "Tokens by id. Masks have `width` bits; ids from len(token_bytes) on are never allowed.")
        .def(nb::new_(&make_vocabulary), "token_bytes"_a, "special"_a, "eos"_a, "width"_a, "cache_bytes"_a)
        .def_prop_ro("width", &Vocabulary::width)
        .def_prop_ro("nbytes", &Vocabulary::nbytes);

    nb::class_<Grammar>(m, "Grammar", "A program (see forge_grammar.program.Flat) over a vocabulary.")
        .def(nb::new_(&make_grammar), "vocabulary"_a, "languages"_a, "texts"_a, "words"_a)
        .def_prop_ro("nbytes", &Grammar::nbytes, "Bytes held now, cached masks included; shared languages count fully.")
        .def(
            "matcher", [](std::shared_ptr<Grammar> self) { return std::make_shared<Matcher>(std::move(self)); },
            "A matcher at the start.");

    nb::class_<Matcher>(m, "Matcher", "Where one sequence stands in its grammar.")
        .def("fill", &fill, nb::arg("row").noconvert(), "Write the tokens allowed next: int32 [ceil(width / 32)].")
        .def("accept", &Matcher::accept, "token"_a, "Advance by a token; False, and no change, if it isn't allowed.")
        .def(
            "validate", [](Matcher& self, const std::vector<int64_t>& tokens) { return self.validate(tokens); },
            "tokens"_a, "How many of the tokens could be accepted in order.")
        .def("rollback", &Matcher::rollback, "tokens"_a, "Take back the last tokens accepted.")
        .def(
            "forced",
            [](Matcher& self) {
                const std::string text = self.forced();
                return nb::bytes(text.data(), text.size());
            },
            "The bytes that must follow; 256 at most.")
        .def_prop_ro("is_final", &Matcher::is_final, "Whether the sequence may end here, or has ended.");

    m.def("fill_batch", &fill_batch, "matchers"_a, nb::arg("rows").noconvert(),
          "`Matcher.fill` for each row: int32 [matchers, ceil(width / 32)].");
}

}  // namespace forge::grammar
