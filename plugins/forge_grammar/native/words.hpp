// Which words a language still has when some are taken. Exact answers: a byte is allowed exactly if a word that isn't
// taken can follow it.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "frame.hpp"

namespace forge::grammar {

// Code points, first to last.
struct Range {
    uint32_t first, last;
};
using Ranges = std::vector<Range>;
using Taken = std::vector<std::string_view>;  // UTF-8

bool accepts(const Dfa& dfa, std::string_view text);

// Whether a word of lo to hi (UNBOUNDED) code points follows from a state that isn't taken.
bool some_word(const Language& language, uint32_t state, uint32_t lo, uint32_t hi, const Taken& taken);

// As some_word, of words whose first code point is in one of the ranges.
bool some_word_in(const Language& language, uint32_t state, uint32_t lo, uint32_t hi, const Taken& taken,
                  const Range* ranges, size_t count);

// Whether a shape declares a property.
bool declares(const Program& program, const ObjectShape& shape, std::string_view name);

// Whether a number that begins with `text`, after which the automaton is in `state`, has a value that isn't used.
bool number_is_fresh(const Language& language, uint32_t state, const std::string& text, const Ref<Used>& used);

// Whether a literal's value isn't used.
bool literal_is_fresh(const std::string& literal, const Ref<Used>& used);

// Whether a type has a value, neither array nor object, that isn't used.
bool has_fresh_scalar(const Program& program, const Type& type, const Ref<Used>& used);

// The strings among used items.
void add_used_strings(const Ref<Used>& used, Taken& taken);

}  // namespace forge::grammar
