// The canonical text of a JSON value: equal values have equal texts, whatever their spelling. Expects valid JSON.
#pragma once

#include <string>
#include <string_view>

namespace forge::grammar {

// What the text of a JSON string stands for, as UTF-8. Begins after the opening quote; ends before the closing one, at
// the end, or before a character that isn't whole.
std::string decode_string(std::string_view text);

// The JSON text of a string, with quotes: as Python's json.dumps(..., ensure_ascii=False).
std::string encode_string(std::string_view decoded);

// A number by its value: digits without trailing zeros, and a power of ten.
std::string canonical_number(std::string_view text);

// Strings as a quote and what they stand for (at the top level), numbers by value, keys of objects sorted.
std::string canonical(std::string_view text);

}  // namespace forge::grammar
