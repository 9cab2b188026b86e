// Code points from bytes: UTF-8, and the escapes of JSON strings on top of it, one byte at a time.
#pragma once

#include <cstdint>

namespace forge::grammar {

// A character that has begun, and the code points that it can still become.
struct Partial {
    enum Stage : uint8_t { NONE, UTF8, BACKSLASH, HEX, HIGH_SURROGATE, SECOND_BACKSLASH, LOW_HEX };
    Stage stage = NONE;
    uint8_t missing = 0;  // bytes or digits to come
    uint16_t high = 0;    // the high surrogate before
    uint32_t value = 0;   // the bits or digits so far
    uint32_t least = 0;   // UTF8: the first code point that isn't overlong
};

inline constexpr uint32_t REFUSED = 0xFFFFFFFF, UNFINISHED = 0xFFFFFFFE;

// The next byte: a code point that's whole, UNFINISHED (see `partial`), or REFUSED. The closing quote is the caller's.
uint32_t read_utf8(Partial& partial, uint8_t byte);
uint32_t read_json(Partial& partial, uint8_t byte);

struct Range;
// Writes the ranges that a character can still become, at most 10, ascending or not; returns how many.
uint32_t possible(const Partial& partial, Range* ranges);

}  // namespace forge::grammar
