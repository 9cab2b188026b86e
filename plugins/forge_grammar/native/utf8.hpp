// UTF-8, read leniently where it was checked before, and written.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace forge::grammar {

inline void append_utf8(std::string& out, uint32_t cp) {
    auto put = [&](uint32_t x) { out.push_back(static_cast<char>(x)); };
    if (cp < 0x80) {
        put(cp);
    } else if (cp < 0x800) {
        put(0xC0 | cp >> 6), put(0x80 | (cp & 63));
    } else if (cp < 0x10000) {
        put(0xE0 | cp >> 12), put(0x80 | (cp >> 6 & 63)), put(0x80 | (cp & 63));
    } else {
        put(0xF0 | cp >> 18), put(0x80 | (cp >> 12 & 63)), put(0x80 | (cp >> 6 & 63)), put(0x80 | (cp & 63));
    }
}

// The code point at `at`, and moves on; 0xFFFFFFFF if it isn't well-formed (overlong, surrogate, cut off).
inline uint32_t next_code_point(std::string_view text, size_t& at) {
    constexpr uint32_t BAD = 0xFFFFFFFF;
    const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
    const uint32_t b = byte(at++);
    if (b < 0x80) return b;
    const uint32_t more = b >= 0xF0 ? 3 : b >= 0xE0 ? 2 : 1;
    if (b < 0xC2 || b > 0xF4 || text.size() - at < more) return BAD;
    uint32_t cp = b & (0x3F >> more);
    for (uint32_t i = 0; i < more; ++i) {
        if ((byte(at) & 0xC0) != 0x80) return BAD;
        cp = cp << 6 | (byte(at++) & 63);
    }
    if (cp > 0x10FFFF || (cp >= 0xD800 && cp <= 0xDFFF) || cp < (more == 3 ? 0x10000U : more == 2 ? 0x800U : 0x80U))
        return BAD;
    return cp;
}

}  // namespace forge::grammar
