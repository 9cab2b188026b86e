// Python's automata: the class Dfa and the functions that make one, as forge_grammar/regular/automaton.py has them.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "automaton.hpp"
#include "bindings.hpp"

namespace nb = nanobind;

namespace forge::grammar {
namespace {

std::u32string code_points(nb::handle text) {
    if (!PyUnicode_Check(text.ptr())) throw nb::type_error("a text is expected");
    std::u32string result(static_cast<size_t>(PyUnicode_GetLength(text.ptr())), U'\0');
    if (!result.empty() && !PyUnicode_AsUCS4(text.ptr(), reinterpret_cast<Py_UCS4*>(result.data()),
                                             static_cast<Py_ssize_t>(result.size()), 0))
        nb::raise_python_error();
    return result;
}

nb::object python_text(const std::u32string& text) {
    return nb::steal(
        PyUnicode_FromKindAndData(PyUnicode_4BYTE_KIND, text.data(), static_cast<Py_ssize_t>(text.size())));
}

std::span<const uint8_t> bytes_of(const nb::bytes& data) {
    return {static_cast<const uint8_t*>(data.data()), data.size()};
}

template <typename F>
auto without_gil(F compute) {
    nb::gil_scoped_release release;
    return compute();
}

uint32_t length(int64_t value, uint32_t unbounded) {
    return value < 0 ? unbounded : static_cast<uint32_t>(std::min<int64_t>(value, Dfa::UNBOUNDED - 1));
}

nb::object words(const Dfa& dfa, int64_t limit) {
    const auto found = dfa.words(length(limit, 0));
    if (!found) return nb::none();
    nb::list result;
    for (const std::u32string& word : *found) result.append(python_text(word));
    return result;
}

Dfa from_table(int32_t start, std::vector<uint32_t> bounds, std::vector<uint32_t> range_class,
               const std::vector<std::vector<int32_t>>& rows, std::vector<uint8_t> accepting) {
    Table table;
    table.start = start;
    for (uint32_t each : range_class) table.classes = std::max(table.classes, each + 1);
    if (bounds.empty() || bounds[0] || bounds.size() != range_class.size() ||
        !std::is_sorted(bounds.begin(), bounds.end(), std::less_equal<>()))
        throw nb::value_error("ranges that don't ascend from 0, or without a class each");
    if (rows.size() != accepting.size() || start >= static_cast<int64_t>(rows.size()))
        throw nb::value_error("states, start and accepting states that don't fit each other");
    for (const auto& row : rows) {
        const bool inside = std::all_of(row.begin(), row.end(), [&](int32_t target) {
            return target >= -1 && target < static_cast<int64_t>(rows.size());
        });
        if (row.size() != table.classes || !inside)
            throw nb::value_error("a row without a state for each class, or with one out of range");
        table.next.insert(table.next.end(), row.begin(), row.end());
    }
    table.bounds = std::move(bounds);
    table.range_class = std::move(range_class);
    table.accepting = std::move(accepting);
    const Limits enough{UINT64_MAX, UINT64_MAX};   // no more states than the table has
    return without_gil([&] { return product(canonical(table), everything(), '&', enough); });
}

// rows: int32, four for each state of the NFA; all was made by regular/determinize.py's `prepare`.
Dfa determinize_prepared(const nb::bytes& rows, uint32_t start, int before, std::vector<uint32_t> bounds,
                         std::vector<uint32_t> range_class, uint32_t classes,
                         std::vector<std::vector<uint32_t>> members, std::vector<uint8_t> kind,
                         std::vector<const Dfa*> looks, std::vector<std::vector<uint32_t>> look_class,
                         uint64_t max_states, uint64_t max_work) {
    PreparedNfa nfa;
    nfa.rows.resize(rows.size() / sizeof(nfa.rows[0]));
    std::memcpy(nfa.rows.data(), rows.data(), nfa.rows.size() * sizeof(nfa.rows[0]));
    nfa.start = start;
    nfa.classes = classes;
    nfa.bounds = std::move(bounds);
    nfa.range_class = std::move(range_class);
    nfa.members = std::move(members);
    nfa.kind = std::move(kind);
    nfa.looks = std::move(looks);
    nfa.look_class = std::move(look_class);
    return without_gil([&] { return determinize(nfa, before, {max_states, max_work}); });
}

void translate_limits() {
    nb::register_exception_translator([](const std::exception_ptr& pointer, void*) {
        try {
            std::rethrow_exception(pointer);
        } catch (const LimitExceeded& error) {
            nb::object type = nb::module_::import_("forge_grammar.regular.errors").attr("LimitExceeded");
            PyErr_SetObject(type.ptr(), type(error.name, error.limit).ptr());
        }
    });
}

}  // namespace

void bind_regular(nb::module_& m) {
    translate_limits();
    nb::class_<Dfa>(m, "Dfa", "A canonical automaton; forge_grammar.regular.dfa.Dfa in machine code.")
        .def_static("from_bytes", [](const nb::bytes& data) { return Dfa::from_bytes(bytes_of(data)); })
        .def("to_bytes",
             [](const Dfa& dfa) {
                 const auto data = dfa.to_bytes();
                 return nb::bytes(data.data(), data.size());
             })
        .def_ro("start", &Dfa::start)
        .def_ro("states", &Dfa::states)
        .def_ro("classes", &Dfa::classes)
        .def_ro("bounds", &Dfa::bounds)
        .def_ro("range_class", &Dfa::range_class)
        .def("class_of", &Dfa::class_of)
        .def("step", &Dfa::step)
        .def("live_in", &Dfa::live_in)
        .def("words_from", &Dfa::words_from)
        .def("universal", &Dfa::universal)
        .def("accepts", [](const Dfa& dfa, const nb::str& text) { return dfa.accepts(code_points(text)); })
        .def("words", &words)
        .def(
            "reaches",
            [](const Dfa& dfa, uint32_t state, int64_t low, int64_t high) {
                return without_gil([&] { return dfa.reaches(state, length(low, 0), length(high, Dfa::UNBOUNDED)); });
            },
            nb::arg("state"), nb::arg("low"), nb::arg("high") = -1);
    m.def("everything", &everything);
    m.def("empty", [] { return canonical(Table{}); });
    m.def("product", [](const Dfa& a, const Dfa& b, char operation, uint64_t max_states, uint64_t max_work) {
        return without_gil([&] { return product(a, b, operation, {max_states, max_work}); });
    });
    m.def("literals", [](const nb::list& texts, uint64_t max_states, uint64_t max_work) {
        std::vector<std::u32string> words;
        for (nb::handle text : texts) words.push_back(code_points(text));
        return without_gil([&] { return literals(words, {max_states, max_work}); });
    });
    m.def("from_table", &from_table);
    m.def("determinize_prepared", &determinize_prepared);
}

}  // namespace forge::grammar
