// A grammar's program, checked and indexed: types, shapes, languages, texts. Laid out by forge_grammar/program.py.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dfa.hpp"

namespace forge::grammar {

inline constexpr uint32_t UNBOUNDED = 0xFFFFFFFF;
inline constexpr uint32_t INFINITE_WORDS = Dfa::INFINITE;

// An automaton with what the machine asks of its states. Shared by all grammars of a vocabulary.
struct Language {
    Dfa dfa;
    uint64_t id = 0;                 // never reused
    std::vector<uint32_t> shortest;  // length of the shortest word from each state
    uint32_t longest_shortest = 0;
    bool endless = true;  // infinitely many words from every state

    Language(std::span<const uint8_t> data, uint64_t id);
    bool reaches(uint32_t state, uint32_t lo, uint32_t hi) const;
    size_t nbytes() const;
};

struct Term {
    uint32_t language, min, max;
    std::span<const int32_t> excluded;
};

struct Type {
    std::span<const int32_t> literals, numbers, arrays, objects;
    uint32_t first_term = 0, last_term = 0;
    uint32_t values = 0;  // how many it has at least, INFINITE_WORDS for no end of them; 0: nobody asks
};

struct Contains {
    uint32_t min, max;
    std::span<const int32_t> both, neither;
};

struct ArrayShape {
    uint32_t min, max;
    bool unique;
    std::span<const int32_t> prefix;
    int32_t rest;
    std::vector<Contains> contains;
    uint32_t ceiling;     // the items that types allow at most
    uint32_t saturation;  // from this index on nothing depends on it; UNBOUNDED: everything does
};

struct KeyClass {
    uint32_t language;
    int32_t type;
    uint32_t shape;
};

struct ObjectShape {
    uint32_t min, max;
    std::span<const int32_t> properties;  // name, type, required
    std::span<const int32_t> by_name;
    uint32_t first_class, last_class;
    std::vector<uint32_t> rank;           // the inverse of by_name
    std::vector<uint32_t> required_from;  // how many of the properties from each index on are required
    std::vector<uint32_t> open_from;      // how many may come
    std::vector<uint32_t> next_required;  // the index of the first required one from each index on
    std::vector<std::string> names;       // decoded

    uint32_t size() const { return static_cast<uint32_t>(by_name.size()); }
    int32_t name(uint32_t i) const { return properties[3 * i]; }
    int32_t type(uint32_t i) const { return properties[3 * i + 1]; }
    bool required(uint32_t i) const { return properties[3 * i + 2] != 0; }
    bool has_classes() const { return first_class != last_class; }
};

struct Trigger {
    uint32_t trigger, begin, type, end;
};

class LanguagePool;

struct Program {
    enum Root : int32_t { JSON = 0, TEXT = 1, TRIGGERS = 2 };
    Root root_kind = JSON;
    int32_t root = -1;
    bool any_order = false;
    uint32_t whitespace = 0;
    std::vector<int32_t> words;
    std::vector<std::string> texts;
    std::vector<std::shared_ptr<const Language>> languages;
    std::vector<Trigger> triggers;
    std::vector<Type> types;
    std::vector<Term> terms;
    std::vector<ArrayShape> arrays;
    std::vector<ObjectShape> objects;
    std::vector<KeyClass> classes;

    // Throws std::invalid_argument at anything out of place.
    Program(LanguagePool& pool, std::span<const std::string> languages, std::vector<std::string> texts,
            std::string_view words);
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;
    const std::string& text(int32_t id) const { return texts[static_cast<size_t>(id)]; }
    const Language& language(uint32_t id) const { return *languages[id]; }
    size_t nbytes() const;
};

}  // namespace forge::grammar
