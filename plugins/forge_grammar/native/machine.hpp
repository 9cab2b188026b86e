// The machine: a configuration, a byte, the next configuration, or none where the byte is refused.
//
// Every alternative that a configuration holds can be completed, hence a byte is allowed exactly if one survives it.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "frame.hpp"
#include "lexeme.hpp"

namespace forge::grammar {

// Where a text stands: what has been read last, above a stack of open frames.
struct Configuration {
    enum Mode : uint8_t {
        VALUE,  // awaits a value of the frame's requests; `closing`: or the end of the array, which is empty
        KEY,    // awaits a key; `closing`: or the end of the object, which is empty
        COLON,  // after a key
        AFTER,  // after a value: comma or end
        DONE,
        FREE_TEXT,   // text outside of triggers
        BEGIN_TEXT,  // the text before a trigger's value
        END_TEXT,   // the text that ends a trigger's value
        STRING,
        IN_KEY,
        BARE,
        TEXT,  // in a lexeme
    };
    Mode mode = DONE;
    bool closing = false;
    bool gap_allowed = false;
    bool line_break = false, half = false;  // of the gap: one was, of which only \r was read
    uint16_t blanks = 0;
    uint32_t trigger = NO_INDEX,
             depth = 0;  // FREE_TEXT: it ends with so many bytes of the trigger's; others: so many were read
    Ref<Frame> frame;
    Lexeme lexeme;

    bool in_lexeme() const { return mode >= STRING; }
};

// Puts a configuration into a mode outside of lexemes, before any gap.
void go(Configuration& out, Configuration::Mode mode, Ref<Frame> frame, bool gap_allowed);

class Machine {
public:
    explicit Machine(const Program& program) : program_(program) {}

    Configuration start() const;
    // The byte is the last one of `text`, which is all text so far. `out` is unspecified where it's refused.
    bool step(const Configuration& in, std::string_view text, Configuration& out);
    // Whether the output may end. `text` is all so far.
    bool is_final(const Configuration& at, std::string_view text);
    const Program& program() const { return program_; }

private:
    bool step_gap(const Configuration& in, uint8_t byte, Configuration& out) const;
    bool begin_value(const Configuration& in, std::string_view text, Configuration& out);
    bool open(const Ref<Frame>& below, std::string_view text, Frame::Kind kind, Configuration& out);
    bool await_items(const Ref<Frame>& frame, Ref<Frame>& out) const;
    bool end_key(const Configuration& in, std::string_view text, Configuration& out);
    bool end_bare(const Configuration& in, std::string_view text, Configuration& out);
    bool end_value(const Ref<Frame>& frame, uint32_t start, std::string_view text, Configuration& out) const;
    bool close(const Ref<Frame>& frame, std::string_view text, Configuration& out);
    bool closes(const Frame& frame, const Alternative& a) const;
    bool closable(const Frame& frame) const;
    bool extensible(const Frame& frame) const;
    bool after_value(const Configuration& in, std::string_view text, Configuration& out);
    bool free_text(uint32_t trigger, uint32_t depth, uint8_t byte, Configuration& out) const;
    bool begin_text(const Configuration& in, uint8_t byte, Configuration& out) const;
    void begun(uint32_t trigger, std::string_view so_far, Configuration& out) const;
    bool end_text(const Configuration& in, uint8_t byte, Configuration& out) const;
    void root_value(uint32_t trigger, int32_t type, Configuration& out) const;
    const std::string& trigger_begin(uint32_t trigger) const {
        return program_.texts[program_.triggers[trigger].begin];
    }
    const std::string& trigger_end(uint32_t trigger) const { return program_.texts[program_.triggers[trigger].end]; }

    const Program& program_;
    std::vector<uint32_t> accepted_;  // requests that accept the value that has just ended
    std::vector<KeyMatch> matches_;
};

}  // namespace forge::grammar
