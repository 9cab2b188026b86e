// Raw control characters, lone surrogates, overlong UTF-8, and printable ASCII as \u00XX are never read.
#include "characters.hpp"

#include <algorithm>
#include <string_view>

#include "words.hpp"

namespace forge::grammar {
namespace {

constexpr uint32_t LAST = 0x10FFFF;

uint32_t astral(uint32_t high, uint32_t low) { return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00); }

uint32_t short_escape(uint8_t byte) {
    switch (byte) {
        case '"':
        case '\\':
        case '/': return byte;
        case 'b': return '\b';
        case 'f': return '\f';
        case 'n': return '\n';
        case 'r': return '\r';
        case 't': return '\t';
        default: return REFUSED;
    }
}

uint32_t digit_of(uint8_t byte) {
    if (byte >= '0' && byte <= '9') return byte - '0';
    const uint8_t lower = byte | 32;
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10U : REFUSED;
}

uint32_t add(Range* ranges, uint32_t n, uint32_t first, uint32_t last) {
    if (first > last) return n;
    ranges[n] = {first, last};
    return n + 1;
}

// first..last without surrogates.
uint32_t add_scalars(Range* ranges, uint32_t n, uint32_t first, uint32_t last) {
    n = add(ranges, n, first, std::min(last, 0xD7FFU));
    return add(ranges, n, std::max(first, 0xE000U), last);
}

uint32_t possible_hex(const Partial& partial, Range* ranges) {
    const uint32_t bits = 4U * partial.missing;
    const uint32_t first = partial.value << bits, last = ((partial.value + 1) << bits) - 1;
    uint32_t n = add(ranges, 0, first, std::min(last, 0x1FU));
    n = add_scalars(ranges, n, std::max(first, 0x7FU), last);
    const uint32_t low = std::max(first, 0xD800U), high = std::min(last, 0xDBFFU);
    return low <= high ? add(ranges, n, astral(low, 0xDC00), astral(high, 0xDFFF)) : n;
}

uint32_t unfinished(Partial& partial, Partial next) {
    Range ranges[10];
    partial = next;
    return possible(partial, ranges) > 0 ? UNFINISHED : REFUSED;
}

uint32_t finished(Partial& partial, uint32_t code_point) {
    partial = {};
    return code_point;
}

uint32_t read_hex(Partial& partial, uint8_t byte) {
    const uint32_t digit = digit_of(byte);
    if (digit == REFUSED) return REFUSED;
    Partial next = partial;
    next.value = partial.value << 4 | digit;
    --next.missing;
    if (next.missing > 0) return unfinished(partial, next);
    const uint32_t value = next.value;
    if (next.stage == Partial::LOW_HEX)
        return value < 0xDC00 || value > 0xDFFF ? REFUSED : finished(partial, astral(next.high, value));
    if (value >= 0xD800 && value <= 0xDBFF)
        return unfinished(partial, {Partial::HIGH_SURROGATE, 0, static_cast<uint16_t>(value), 0, 0});
    return value <= 0x1F || (value >= 0x7F && value < 0xD800) || value > 0xDFFF ? finished(partial, value) : REFUSED;
}

}  // namespace

uint32_t possible(const Partial& partial, Range* ranges) {
    uint32_t n = 0;
    switch (partial.stage) {
        case Partial::NONE: return 0;
        case Partial::UTF8: {
            const uint32_t bits = 6U * partial.missing;
            const uint32_t first = std::max(partial.value << bits, partial.least);
            return add_scalars(ranges, 0, first, std::min(((partial.value + 1) << bits) - 1, LAST));
        }
        case Partial::BACKSLASH:
            for (const uint32_t cp : {0x22U, 0x2FU, 0x5CU}) n = add(ranges, n, cp, cp);
            [[fallthrough]];  // the other short ones are control characters
        case Partial::HEX:
            if (partial.missing > 0 && partial.missing < 4) return possible_hex(partial, ranges);
            n = add(ranges, n, 0, 0x1F);
            return add_scalars(ranges, n, 0x7F, LAST);
        case Partial::HIGH_SURROGATE:
        case Partial::SECOND_BACKSLASH:
            return add(ranges, 0, astral(partial.high, 0xDC00), astral(partial.high, 0xDFFF));
        case Partial::LOW_HEX: {
            const uint32_t bits = 4U * partial.missing;
            const uint32_t first = std::max(partial.value << bits, 0xDC00U);
            const uint32_t last = std::min(((partial.value + 1) << bits) - 1, 0xDFFFU);
            return first <= last ? add(ranges, 0, astral(partial.high, first), astral(partial.high, last)) : 0;
        }
    }
    return n;
}

uint32_t read_utf8(Partial& partial, uint8_t byte) {
    if (partial.stage == Partial::NONE) {
        if (byte < 0x80) return byte;
        if (byte < 0xC2 || byte > 0xF4) return REFUSED;
        Partial next;
        next.stage = Partial::UTF8;
        next.missing = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : 1;
        next.value = byte & (0x3FU >> next.missing);
        next.least = byte >= 0xF0 ? 0x10000 : byte >= 0xE0 ? 0x800 : 0x80;
        return unfinished(partial, next);
    }
    if ((byte & 0xC0) != 0x80) return REFUSED;
    Partial next = partial;
    next.value = partial.value << 6 | (byte & 0x3FU);
    --next.missing;
    return next.missing > 0 ? unfinished(partial, next) : finished(partial, next.value);
}

uint32_t read_json(Partial& partial, uint8_t byte) {
    switch (partial.stage) {
        case Partial::NONE:
            if (byte == '\\') {
                partial.stage = Partial::BACKSLASH;
                return UNFINISHED;
            }
            return byte < 0x20 || byte == '"' ? REFUSED : read_utf8(partial, byte);
        case Partial::UTF8: return read_utf8(partial, byte);
        case Partial::BACKSLASH: {
            if (byte == 'u') {
                partial = {Partial::HEX, 4, 0, 0, 0};
                return UNFINISHED;
            }
            const uint32_t cp = short_escape(byte);
            return cp == REFUSED ? cp : finished(partial, cp);
        }
        case Partial::HIGH_SURROGATE:
            partial.stage = Partial::SECOND_BACKSLASH;
            return byte == '\\' ? UNFINISHED : REFUSED;
        case Partial::SECOND_BACKSLASH:
            partial.stage = Partial::LOW_HEX;
            partial.missing = 4;
            partial.value = 0;
            return byte == 'u' ? UNFINISHED : REFUSED;
        default: return read_hex(partial, byte);
    }
}

}  // namespace forge::grammar
