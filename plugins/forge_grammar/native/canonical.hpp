// The canonical text of a JSON value: equal values have equal texts, whatever their spelling. Expects valid JSON.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace forge::grammar {

// What the text of a JSON string stands for, as UTF-8. Begins after the opening quote; ends before the closing one, at
// the end, or before a character that isn't whole.
std::string decode_string(std::string_view text);

// The JSON text of a string, with quotes: as Python's json.dumps(..., ensure_ascii=False).
std::string encode_string(std::string_view decoded);

// A number by its value: digits without trailing zeros, and a power of ten.
std::string canonical_number(std::string_view text);

// A value by its canonical text, with the values in it. Strings are a quote and what they stand for, numbers go by value,
// arrays and objects are a bracket and 128 bits that stand for what's in them, keys sorted.
struct Value {
    enum Kind : uint8_t { SCALAR, ARRAY, OBJECT };
    Kind kind = SCALAR;
    std::string text;
    std::vector<std::string> keys;  // of an object, decoded and sorted
    std::vector<Value> items;       // of an array, or of an object by key

    Value() = default;
    Value(const Value&) = delete;
    Value(Value&&) = default;
    Value& operator=(const Value&) = delete;
    Value& operator=(Value&&) = default;
    ~Value();  // without recursion, however deep it is
    const Value* member(std::string_view key) const;
};
Value read_value(std::string_view text);
std::string canonical(std::string_view text);

}  // namespace forge::grammar
