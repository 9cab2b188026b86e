// Strings, keys, bare values and raw text while they're being read: which of the things awaited they can still become.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "characters.hpp"
#include "frame.hpp"
#include "words.hpp"

namespace forge::grammar {

// One thing that the text so far can become. tag: the request of the frame, or for keys the alternative.
struct Entry {
    enum Kind : uint8_t { LITERAL, NAME, TERM, KEY_CLASS, NUMBER, TEXT };
    Kind kind;
    uint32_t tag;
    uint32_t source;  // LITERAL: type; NAME: shape; TERM: term; KEY_CLASS: key class; NUMBER, TEXT: language
    uint32_t a;       // LITERAL, NAME: [a, b) of the sorted texts begin with the text so far; others: a is the state
    uint32_t b;
};

struct Lexeme {
    uint32_t start = 0;   // offset of the first byte, the opening quote included
    uint32_t length = 0;  // code points
    Partial partial;
    std::vector<Entry> entries;
};

// What a lexeme is read in. text: all so far, with the byte in question.
struct Scene {
    const Program& program;
    const Frame& frame;
    std::string_view text;
};

// What a key turned out to be. property: NO_INDEX for a key of a class.
struct KeyMatch {
    uint32_t alternative, property;
    int32_t type;
};

// At the first byte of a value or key, which ends `scene.text`. False if nothing is left.
bool start_string(const Scene& scene, Lexeme& lexeme);
bool start_bare(const Scene& scene, Lexeme& lexeme);
bool start_key(const Scene& scene, Lexeme& lexeme);
bool start_text(const Program& program, Lexeme& lexeme);

// By one byte, which ends `scene.text`. False if nothing is left.
bool step_string(const Scene& scene, const Lexeme& in, Lexeme& out);
bool step_bare(const Scene& scene, const Lexeme& in, Lexeme& out);
bool step_text(const Program& program, const Lexeme& in, uint8_t byte, Lexeme& out);

// The requests that accept a string whose closing quote ends `scene.text`; a bare value that `scene.text` ends with.
void string_accepted(const Scene& scene, const Lexeme& lexeme, std::vector<uint32_t>& requests);
void bare_accepted(const Scene& scene, const Lexeme& lexeme, std::vector<uint32_t>& requests);
void key_accepted(const Scene& scene, const Lexeme& lexeme, std::vector<KeyMatch>& matches);

// What a string entry's automaton is, and the lengths that may follow.
struct Formed {
    const Language& language;
    uint32_t state, lo, hi;
};
Formed formed(const Program& program, const Lexeme& lexeme, const Entry& entry);

// Whether texts that are taken begin with the (unfinished) lexeme and bear on what may follow. scene.text: all so far.
bool text_matters(const Scene& scene, const Lexeme& lexeme, const Entry& entry);

}  // namespace forge::grammar
