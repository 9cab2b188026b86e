// Deterministic automata over code points: their serialised form and the questions a machine asks of them. The twin of
// forge_grammar/regular/dfa.py, which documents the form.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace forge::grammar {

// A language that would cost more than is allowed; Python's LimitExceeded.
struct LimitExceeded : std::runtime_error {
    LimitExceeded(std::string name, uint64_t limit);
    std::string name;
    uint64_t limit;
};

// A trimmed minimal automaton in canonical form: equal languages have equal bytes. Immutable once made (`from_bytes` or
// `finish`): what is computed lazily is guarded, so threads may share one.
struct Dfa {
    static constexpr uint32_t DEAD = 0xFFFFFFFF;
    static constexpr uint32_t INFINITE = 0x7FFFFFFF;
    static constexpr uint32_t UNBOUNDED = 0xFFFFFFFF;
    static constexpr uint32_t CODE_POINTS = 0x110000;

    uint32_t start = DEAD, states = 0, classes = 1;
    std::vector<uint32_t> bounds{0};          // first code point of each range
    std::vector<uint16_t> range_class{0};     // class of each range
    std::vector<uint32_t> delta;              // [states * classes]
    std::vector<uint8_t> accepting;           // [states]

    // Throws std::invalid_argument where the bytes aren't an automaton.
    static Dfa from_bytes(std::span<const uint8_t> data);
    std::vector<uint8_t> to_bytes() const;
    // Computes what the questions need; to be called once the fields above are set.
    void finish();

    uint32_t class_of(uint32_t cp) const { return cp < 128 ? ascii_[cp] : range_class[range_of(cp)]; }
    // The state after a code point; DEAD if no accepted word goes on so.
    uint32_t step(uint32_t state, uint32_t cp) const {
        return state == DEAD ? DEAD : delta[static_cast<size_t>(state) * classes + class_of(cp)];
    }
    // Whether some code point of first..last leads to a live state.
    bool live_in(uint32_t state, uint32_t first, uint32_t last) const;
    // How many words are accepted from a state; INFINITE also for as many or more.
    uint32_t words_from(uint32_t state) const { return state == DEAD ? 0 : counts_[state]; }
    // Whether every text is accepted from here.
    bool universal(uint32_t state) const { return state != DEAD && state == universal_; }
    // Whether a word of low..high code points is accepted from a state; high UNBOUNDED: of any length from low.
    // Throws LimitExceeded where no short period tells (never for a smaller low with the same high - low).
    bool reaches(uint32_t state, uint32_t low, uint32_t high) const;
    // All words in order of code points; nothing where there are more than `limit`.
    std::optional<std::vector<std::u32string>> words(uint32_t limit) const;
    bool accepts(std::u32string_view text) const;

    size_t range_of(uint32_t cp) const;       // index of the range that a code point is in
    uint32_t range_end(size_t range) const { return range + 1 < bounds.size() ? bounds[range + 1] : CODE_POINTS; }

   private:
    struct Lengths;
    void check() const;
    void measure();
    uint32_t find_universal() const;

    uint16_t ascii_[128] = {};
    uint32_t universal_ = DEAD;
    std::vector<uint32_t> counts_, shortest_, longest_;     // per state; longest_ UNBOUNDED: no longest word
    std::shared_ptr<Lengths> lengths_;
};

}  // namespace forge::grammar
