// From configurations to masks: which tokens may follow.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

#include "machine.hpp"
#include "vocabulary.hpp"

namespace forge::grammar {

// A program over a vocabulary, shared by matchers of any threads.
struct Grammar {
    std::shared_ptr<Vocabulary> vocabulary;
    Program program;
    MaskCache cache;  // tokens by configuration

    Grammar(std::shared_ptr<Vocabulary> vocabulary, const std::vector<std::string>& languages,
            std::vector<std::string> texts, std::string_view words);
    size_t nbytes() { return program.nbytes() + cache.nbytes(); }
};

// The text accepted so far, with room for the longest token behind it.
class Text {
public:
    std::string_view view() const { return {bytes_.data(), size_}; }
    size_t size() const { return size_; }
    void reserve(size_t more) {
        if (bytes_.size() < size_ + more) bytes_.resize(std::max(size_ + more, 2 * bytes_.size()));
    }
    // The text with one more byte at `depth` bytes behind its end; needs `reserve`.
    std::string_view with(size_t depth, uint8_t byte) {
        bytes_[size_ + depth] = static_cast<char>(byte);
        return {bytes_.data(), size_ + depth + 1};
    }
    void resize(size_t size) { size_ = size; }

private:
    std::vector<char> bytes_;
    size_t size_ = 0;
};

// Fills masks for one matcher; not for several threads at once.
class Masks {
public:
    explicit Masks(Grammar& grammar) : grammar_(grammar), vocabulary_(*grammar.vocabulary) {}

    // Overwrites a mask of vocabulary.words().
    void fill(Machine& machine, const Configuration& at, Text& text, uint32_t* row);

private:
    // A step of an automaton in the walk of plain tokens.
    struct Level {
        uint32_t state, code_points, value, missing;
    };

    bool splits(const Machine& machine, const Configuration& at, std::string_view text) const;
    bool takes_any_plain(const Machine& machine, const Configuration& at) const;
    void add_plain(Machine& machine, const Configuration& at, Text& text, uint32_t* row);
    void add_plain_formed(const Formed& f, uint32_t* row);
    void walk_plain(const Formed& f);
    void add_cached(Machine& machine, const Configuration& at, Text& text, const Trie& trie, bool commas, uint32_t* row);
    void start_walk(const Configuration& at);
    uint32_t walk(Machine& machine, Text& text, const Trie& trie, bool commas = true);
    Hash key_of(const Machine& machine, const Configuration& at, std::string_view text) const;
    void mix_lexeme(const Machine& machine, const Configuration& at, std::string_view text, Hash& key) const;

    Grammar& grammar_;
    Vocabulary& vocabulary_;
    std::vector<Configuration> path_;  // of a walk, by depth
    std::vector<Level> levels_;
    std::vector<uint32_t> found_;
};

}  // namespace forge::grammar
