// Searches for words that aren't taken: bounded by the length of the taken ones, which are followed one by one.
#include "words.hpp"

#include <algorithm>

#include "canonical.hpp"
#include "utf8.hpp"

namespace forge::grammar {
namespace {

// More words than any list of taken ones has: the next code point alone gives as many.
constexpr size_t MANY = 0x100000;

bool by_lengths_alone(const Language& language, uint32_t state, uint32_t hi, const Taken& taken) {
    if (taken.empty()) return true;
    if (hi == UNBOUNDED) return language.dfa.words_from(state) == INFINITE_WORDS;
    return hi > 0 && language.dfa.universal(state) && taken.size() < MANY;
}

Taken after(const Taken& taken, uint32_t cp) {
    std::string head;
    append_utf8(head, cp);
    Taken rest;
    for (const std::string_view word : taken)
        if (word.starts_with(head)) rest.push_back(word.substr(head.size()));
    return rest;
}

// Whether words go on with code points of first..last, all of which lead to the state `target`.
bool some_word_through(const Language& language, uint32_t target, uint32_t lo, uint32_t hi, const Taken& taken,
                       Range range) {
    if (!language.reaches(target, lo, hi)) return false;
    std::vector<uint32_t> heads;
    for (const std::string_view word : taken) {
        if (word.empty()) continue;
        size_t at = 0;
        const uint32_t cp = next_code_point(word, at);
        if (cp >= range.first && cp <= range.last) heads.push_back(cp);
    }
    std::sort(heads.begin(), heads.end());
    heads.erase(std::unique(heads.begin(), heads.end()), heads.end());
    if (heads.size() <= range.last - range.first) return true;
    return std::any_of(heads.begin(), heads.end(),
                       [&](uint32_t cp) { return some_word(language, target, lo, hi, after(taken, cp)); });
}

bool search_number(const Dfa& dfa, uint32_t state, std::string& text, const Ref<Used>& used) {
    if (state == Dfa::DEAD) return false;
    if (dfa.accepting[state] && !Used::contains(used, canonical_number(text))) return true;
    for (const char c : std::string_view("9876543210.eE+-")) {
        text.push_back(c);
        const bool found = search_number(dfa, dfa.step(state, static_cast<uint8_t>(c)), text, used);
        text.pop_back();
        if (found) return true;
    }
    return false;
}

}  // namespace

bool accepts(const Dfa& dfa, std::string_view text) {
    uint32_t state = dfa.start;
    for (size_t at = 0; at < text.size() && state != Dfa::DEAD;) {
        const uint32_t cp = next_code_point(text, at);
        state = cp > 0x10FFFF ? Dfa::DEAD : dfa.step(state, cp);
    }
    return state != Dfa::DEAD && dfa.accepting[state];
}

bool some_word(const Language& language, uint32_t state, uint32_t lo, uint32_t hi, const Taken& taken) {
    if (!language.reaches(state, lo, hi)) return false;
    if (by_lengths_alone(language, state, hi, taken)) return true;
    const bool empty = std::any_of(taken.begin(), taken.end(), [](std::string_view word) { return word.empty(); });
    if (lo == 0 && language.dfa.accepting[state] && !empty) return true;
    constexpr Range everything{0, 0x10FFFF};
    return some_word_in(language, state, lo, hi, taken, &everything, 1);
}

bool some_word_in(const Language& language, uint32_t state, uint32_t lo, uint32_t hi, const Taken& taken,
                  const Range* ranges, size_t count) {
    const Dfa& dfa = language.dfa;
    if (state == Dfa::DEAD || hi == 0) return false;
    lo -= lo > 0;
    hi -= hi != UNBOUNDED;
    for (size_t r = 0; r < count; ++r) {
        for (size_t i = dfa.range_of(ranges[r].first); i < dfa.bounds.size() && dfa.bounds[i] <= ranges[r].last; ++i) {
            const uint32_t target = dfa.delta[size_t{state} * dfa.classes + dfa.range_class[i]];
            if (target == Dfa::DEAD) continue;
            const Range range{std::max(dfa.bounds[i], ranges[r].first), std::min(dfa.range_end(i) - 1, ranges[r].last)};
            if (some_word_through(language, target, lo, hi, taken, range)) return true;
        }
    }
    return false;
}

bool declares(const Program& program, const ObjectShape& shape, std::string_view name) {
    const std::string text = encode_string(name);
    const auto at = std::lower_bound(
        shape.by_name.begin(), shape.by_name.end(), text,
        [&](int32_t i, const std::string& x) { return program.text(shape.name(static_cast<uint32_t>(i))) < x; });
    return at != shape.by_name.end() && program.text(shape.name(static_cast<uint32_t>(*at))) == text;
}

bool number_is_fresh(const Language& language, uint32_t state, const std::string& text, const Ref<Used>& used) {
    if (!used || language.dfa.words_from(state) == INFINITE_WORDS) return state != Dfa::DEAD;
    std::string path = text;
    return search_number(language.dfa, state, path, used);
}

bool literal_is_fresh(const std::string& literal, const Ref<Used>& used) {
    return !used || !Used::contains(used, canonical(literal));
}

bool has_fresh_scalar(const Program& program, const Type& type, const Ref<Used>& used) {
    for (const int32_t id : type.literals)
        if (literal_is_fresh(program.text(id), used)) return true;
    for (const int32_t id : type.numbers) {
        const Language& language = program.language(static_cast<uint32_t>(id));
        if (number_is_fresh(language, language.dfa.start, "", used)) return true;
    }
    for (uint32_t i = type.first_term; i < type.last_term; ++i) {
        const Term& term = program.terms[i];
        const Language& language = program.language(term.language);
        Taken taken;
        for (const int32_t id : term.excluded) taken.push_back(program.text(id));
        add_used_strings(used, taken);
        if (some_word(language, language.dfa.start, term.min, term.max, taken)) return true;
    }
    return false;
}

void add_used_strings(const Ref<Used>& used, Taken& taken) {
    for (const Used* node = used.get(); node != nullptr; node = node->below.get())
        if (node->text.starts_with('"')) taken.push_back(std::string_view(node->text).substr(1));
}

}  // namespace forge::grammar
