// Automata as values: subset construction, products, finite languages, canonical form. The twin of
// forge_grammar/regular/automaton.py and determinize.py: the same results bit for bit, the same limits.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "dfa.hpp"

namespace forge::grammar {

inline constexpr uint64_t MAX_CLASSES = 65'535;

// What building one automaton may cost (regular/limits.py).
struct Limits {
    uint64_t states, work;

    void check_states(uint64_t count) const {
        if (count > states) throw LimitExceeded("DFA states", states);
    }
    void check_work(uint64_t steps) const {
        if (steps > work) throw LimitExceeded("steps of building an automaton", work);
    }
};

// A partial automaton in the making. next: [states * classes], -1 where no text goes on.
struct Table {
    int32_t start = -1;
    uint32_t classes = 0;
    std::vector<uint32_t> bounds, range_class;
    std::vector<int32_t> next;
    std::vector<uint8_t> accepting;

    uint32_t states() const { return static_cast<uint32_t>(accepting.size()); }
};

// Trimmed, minimal, states and classes numbered by first use.
Dfa canonical(const Table& table);

Dfa everything();
// Intersection '&', union '|' or difference '-'.
Dfa product(const Dfa& a, const Dfa& b, char operation, const Limits& limits);
// A finite language; texts sorted, each once.
Dfa literals(const std::vector<std::u32string>& texts, const Limits& limits);

// What regular/determinize.py's Prepared says: rows of (op, argument, next, other next), and of each set (the last: of
// all texts) its classes, of each class its kind, of each lookahead's automata its class for each class.
struct PreparedNfa {
    std::vector<std::array<int32_t, 4>> rows;
    uint32_t start = 0;
    uint32_t classes = 0;
    std::vector<uint32_t> bounds, range_class;
    std::vector<std::vector<uint32_t>> members;
    std::vector<uint8_t> kind;
    std::vector<const Dfa*> looks;
    std::vector<std::vector<uint32_t>> look_class;
};
Dfa determinize(const PreparedNfa& nfa, int before, const Limits& limits);

// The block of equivalent states of each state (Valmari and Lehtinen, 2008); transitions in any order, each from a state
// that is reachable and to one that reaches a final state.
struct Transition {
    uint32_t tail, label, head;
};
std::vector<uint32_t> minimal_blocks(uint32_t states, const std::vector<Transition>& transitions,
                                     const std::vector<uint8_t>& final);

}  // namespace forge::grammar
