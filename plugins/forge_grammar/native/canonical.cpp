// Reads valid JSON without recursion, writes it canonically.
#include "canonical.hpp"

#include <algorithm>
#include <cstdint>
#include <functional>
#include <iterator>
#include <vector>

#include "cache.hpp"
#include "utf8.hpp"

namespace forge::grammar {
namespace {

constexpr uint32_t CUT = 0xFFFFFFFF;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

uint32_t hex4(std::string_view text, size_t at) {
    if (text.size() < at + 4) return CUT;
    uint32_t value = 0;
    for (size_t i = at; i < at + 4; ++i) {
        const char c = text[i];
        value = value << 4 | static_cast<uint32_t>(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return value;
}

// The code point of the escape after the backslash at `at`, and moves behind it; CUT if it isn't whole.
uint32_t escape(std::string_view text, size_t& at) {
    if (at + 1 >= text.size()) return CUT;
    const char c = text[at + 1];
    if (c != 'u') {
        at += 2;
        switch (c) {
            case 'b': return '\b';
            case 'f': return '\f';
            case 'n': return '\n';
            case 'r': return '\r';
            case 't': return '\t';
            default: return static_cast<uint8_t>(c);
        }
    }
    const uint32_t high = hex4(text, at + 2);
    if (high < 0xD800 || high > 0xDBFF) {
        if (high != CUT) at += 6;
        return high;
    }
    const uint32_t low = hex4(text, at + 8);
    if (low == CUT) return CUT;
    at += 12;
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
}

// Where the string whose opening quote is at `at` ends: behind its closing quote.
size_t string_end(std::string_view text, size_t at) {
    for (++at; at < text.size() && text[at] != '"'; ++at)
        if (text[at] == '\\') ++at;
    return std::min(at + 1, text.size());
}

// An open array or object. key: of the member to come, if it's known.
struct Open {
    bool object;
    std::string key;
    bool has_key = false;
    std::vector<std::pair<std::string, Value>> members;
};

Value close(Open& open) {
    Value value;
    value.kind = open.object ? Value::OBJECT : Value::ARRAY;
    if (open.object)
        std::sort(open.members.begin(), open.members.end(),
                  [](const auto& x, const auto& y) { return x.first < y.first; });
    Hash digest;
    for (auto& [key, member] : open.members) {
        if (open.object) {
            digest.mix(std::hash<std::string_view>{}(key));
            value.keys.push_back(std::move(key));
        }
        digest.mix(std::hash<std::string_view>{}(member.text));
        value.items.push_back(std::move(member));
    }
    digest.mix(open.members.size());
    value.text.push_back(open.object ? '{' : '[');
    value.text.append(reinterpret_cast<const char*>(&digest), sizeof digest);
    return value;
}

}  // namespace

std::string decode_string(std::string_view text) {
    std::string out;
    for (size_t at = 0; at < text.size() && text[at] != '"';) {
        if (text[at] == '\\') {
            const uint32_t cp = escape(text, at);
            if (cp == CUT) break;
            append_utf8(out, cp);
            continue;
        }
        const auto byte = static_cast<uint8_t>(text[at]);
        const size_t size = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
        if (at + size > text.size()) break;
        out.append(text.substr(at, size));
        at += size;
    }
    return out;
}

std::string encode_string(std::string_view decoded) {
    static constexpr char HEX[] = "0123456789abcdef";
    std::string out = "\"";
    for (const char c : decoded) {
        switch (c) {
            case '"': out += "\\\""; break;
            case '\\': out += "\\\\"; break;
            case '\b': out += "\\b"; break;
            case '\f': out += "\\f"; break;
            case '\n': out += "\\n"; break;
            case '\r': out += "\\r"; break;
            case '\t': out += "\\t"; break;
            default:
                if (static_cast<uint8_t>(c) < 0x20)
                    (out += "\\u00").append({HEX[static_cast<uint8_t>(c) >> 4], HEX[c & 15]});
                else
                    out.push_back(c);
        }
    }
    return out + '"';
}

std::string canonical_number(std::string_view text) {
    const bool negative = !text.empty() && text[0] == '-';
    std::string digits;
    int64_t power = 0;
    bool fraction = false;
    size_t at = negative ? 1 : 0;
    for (; at < text.size() && (text[at] | 32) != 'e'; ++at) {
        if (text[at] == '.') {
            fraction = true;
            continue;
        }
        power -= fraction;
        if (!digits.empty() || text[at] != '0') digits.push_back(text[at]);
    }
    int64_t exponent = 0;
    const bool below = at + 1 < text.size() && text[at + 1] == '-';
    for (++at; at < text.size(); ++at)
        if (text[at] >= '0' && text[at] <= '9' && exponent < 1'000'000'000) exponent = 10 * exponent + (text[at] - '0');
    power += below ? -exponent : exponent;
    for (; !digits.empty() && digits.back() == '0'; digits.pop_back()) ++power;
    if (digits.empty()) return "0";
    return (negative ? "-" : "") + digits + 'e' + std::to_string(power);
}

Value::~Value() {
    std::vector<Value> pending = std::move(items);
    while (!pending.empty()) {
        std::vector<Value> inner = std::move(pending.back().items);
        pending.pop_back();
        std::move(inner.begin(), inner.end(), std::back_inserter(pending));
    }
}

const Value* Value::member(std::string_view key) const {
    const auto at = std::lower_bound(keys.begin(), keys.end(), key);
    return at != keys.end() && *at == key ? &items[static_cast<size_t>(at - keys.begin())] : nullptr;
}

Value read_value(std::string_view text) {
    std::vector<Open> open;
    Value value;
    auto finish = [&] {
        if (open.empty()) return;
        Open& top = open.back();
        top.members.emplace_back(std::exchange(top.key, {}), std::exchange(value, {}));
        top.has_key = false;
    };
    auto scalar = [&](std::string canonical_text) {
        value = Value();
        value.text = std::move(canonical_text);
        finish();
    };
    for (size_t at = 0; at < text.size();) {
        const char c = text[at];
        if (is_space(c) || c == ',' || c == ':') {
            ++at;
        } else if (c == '{' || c == '[') {
            open.push_back({c == '{', {}, false, {}});
            ++at;
        } else if (c == '}' || c == ']') {
            if (open.empty()) break;
            value = close(open.back());
            open.pop_back();
            finish();
            ++at;
        } else if (c == '"') {
            const size_t end = string_end(text, at);
            std::string decoded = decode_string(text.substr(at + 1, end - at - 1));
            at = end;
            if (!open.empty() && open.back().object && !open.back().has_key) {
                open.back().key = std::move(decoded);
                open.back().has_key = true;
            } else {
                scalar('"' + decoded);
            }
        } else {
            size_t end = at;
            while (end < text.size() && !is_space(text[end]) && text[end] != ',' && text[end] != ']' &&
                   text[end] != '}')
                ++end;
            const std::string_view bare = text.substr(at, end - at);
            scalar(c == '-' || (c >= '0' && c <= '9') ? canonical_number(bare) : std::string(bare));
            at = end;
        }
    }
    return value;
}

std::string canonical(std::string_view text) { return read_value(text).text; }

}  // namespace forge::grammar
