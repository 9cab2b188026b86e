// Positions between lexemes: gaps, brackets, commas, colons.
#include "machine.hpp"

#include <algorithm>

#include "canonical.hpp"
#include "distinct.hpp"
#include "shapes.hpp"

namespace forge::grammar {

void go(Configuration& out, Configuration::Mode mode, Ref<Frame> frame, bool gap_allowed) {
    out.mode = mode;
    out.frame = std::move(frame);
    out.closing = false;
    out.gap_allowed = gap_allowed;
    out.line_break = out.half = false;
    out.blanks = 0;
}

namespace {

void copy_position(const Configuration& in, Configuration& out) {
    out.mode = in.mode;
    out.closing = in.closing;
    out.gap_allowed = in.gap_allowed;
    out.line_break = in.line_break;
    out.half = in.half;
    out.blanks = in.blanks;
    out.frame = in.frame;
}

bool in_gap(const Configuration& at) { return at.blanks > 0 || at.line_break; }

Ref<Frame> like(const Frame& frame) {
    Ref<Frame> next(new Frame);
    next->kind = frame.kind;
    next->within_unique = frame.within_unique;
    next->start = frame.start;
    next->below = frame.below;
    next->used = frame.used;
    if (frame.tied()) next->written = frame.written;
    return next;
}

bool has_unique(const Program& program, const std::vector<Alternative>& alternatives) {
    return std::any_of(alternatives.begin(), alternatives.end(),
                       [&](const Alternative& a) { return program.arrays[a.shape].unique; });
}

}  // namespace

Configuration Machine::start() const {
    Configuration at;
    if (program_.root_kind == Program::JSON) {
        root_value(NO_INDEX, program_.root, at);
    } else if (program_.root_kind == Program::TEXT) {
        at.mode = Configuration::TEXT;
        start_text(program_, at.lexeme);
    } else {
        at.mode = Configuration::FREE_TEXT;
    }
    return at;
}

bool Machine::step(const Configuration& in, std::string_view text, Configuration& out) {
    const auto byte = static_cast<uint8_t>(text.back());
    switch (in.mode) {
        case Configuration::STRING: {
            const Scene scene{program_, *in.frame, text};
            if (byte == '"' && in.lexeme.partial.stage == Partial::NONE) {
                string_accepted(scene, in.lexeme, accepted_);
                return end_value(in.frame, in.lexeme.start, text, out);
            }
            if (!step_string(scene, in.lexeme, out.lexeme)) return false;
            break;
        }
        case Configuration::IN_KEY:
            if (byte == '"' && in.lexeme.partial.stage == Partial::NONE) return end_key(in, text, out);
            if (!step_string({program_, *in.frame, text}, in.lexeme, out.lexeme)) return false;
            break;
        case Configuration::BARE:
            if (!step_bare({program_, *in.frame, text}, in.lexeme, out.lexeme)) return end_bare(in, text, out);
            break;
        case Configuration::TEXT:
            if (in.lexeme.entries.empty() || !step_text(program_, in.lexeme, byte, out.lexeme)) return false;
            break;
        case Configuration::VALUE:
            if (byte <= ' ') return step_gap(in, byte, out);
            if (in.half) return false;
            if (byte == ']') return in.closing && closable(*in.frame) && close(in.frame, text, out);
            return begin_value(in, text, out);
        case Configuration::KEY:
            if (byte <= ' ') return step_gap(in, byte, out);
            if (in.half) return false;
            if (byte == '}') return in.closing && closable(*in.frame) && close(in.frame, text, out);
            if (byte != '"' || !start_key({program_, *in.frame, text}, out.lexeme)) return false;
            out.mode = Configuration::IN_KEY;
            out.frame = in.frame;
            return true;
        case Configuration::COLON:
            if (byte != ':') return false;
            go(out, Configuration::VALUE, in.frame, true);
            return true;
        case Configuration::AFTER: return after_value(in, text, out);
        case Configuration::FREE_TEXT: return free_text(in.trigger, in.depth, byte, out);
        case Configuration::BEGIN_TEXT: return begin_text(in, byte, out);
        case Configuration::END_TEXT: return end_text(in, byte, out);
        case Configuration::DONE: return false;
    }
    out.mode = in.mode;
    out.frame = in.frame;
    return true;
}

bool Machine::step_gap(const Configuration& in, uint8_t byte, Configuration& out) const {
    if (!in.gap_allowed || program_.whitespace == 0) return false;
    const bool blank = byte == ' ' || byte == '\t';
    if (in.half ? byte != '\n'
        : blank ? in.blanks >= program_.whitespace
                : (byte != '\n' && byte != '\r') || in.line_break)
        return false;
    copy_position(in, out);
    out.blanks = static_cast<uint16_t>(in.blanks + blank);
    out.half = byte == '\r';
    out.line_break = in.line_break || !blank;
    return true;
}

bool Machine::begin_value(const Configuration& in, std::string_view text, Configuration& out) {
    const char byte = text.back();
    const bool structure = byte == '{' || byte == '[';
    if (!structure && byte != '"' && byte != '-' && !(byte >= '0' && byte <= '9') && !(byte >= 'a' && byte <= 'z'))
        return false;
    // At the start of an array the items aren't awaited yet.
    Ref<Frame> frame = in.frame;
    if (in.closing && !await_items(in.frame, frame)) return false;
    if (structure) return open(frame, text, byte == '{' ? Frame::OBJECT : Frame::ARRAY, out);
    const Scene scene{program_, *frame, text};
    const bool string = byte == '"';
    if (!(string ? start_string(scene, out.lexeme) : start_bare(scene, out.lexeme))) return false;
    out.mode = string ? Configuration::STRING : Configuration::BARE;
    out.frame = std::move(frame);
    return true;
}

bool Machine::open(const Ref<Frame>& below, std::string_view text, Frame::Kind kind, Configuration& out) {
    Ref<Frame> frame;
    for (uint32_t r = 0; r < below->requests.size(); ++r) {
        const Request& request = below->requests[r];
        const Type& type = program_.types[static_cast<size_t>(request.type)];
        const auto& shapes = kind == Frame::OBJECT ? type.objects : type.arrays;
        if (shapes.empty()) continue;
        if (!frame) frame = Ref<Frame>(new Frame);
        for (const int32_t shape : shapes) {
            const auto id = static_cast<uint32_t>(shape);
            Alternative a = kind == Frame::OBJECT ? start_object(program_, r, id) : start_array(program_, r, id);
            if (request.avoid) {
                tie(a, kind == Frame::OBJECT ? Value::OBJECT : Value::ARRAY, request.avoid);
                if (!(kind == Frame::OBJECT ? object_differs(program_, a, 0) : array_differs(program_, a, 0))) continue;
            }
            add_alternative(frame->alternatives, std::move(a));
        }
    }
    if (!frame || frame->alternatives.empty()) return false;
    frame->kind = kind;
    frame->within_unique =
        below->within_unique || (below->kind == Frame::ARRAY && has_unique(program_, below->alternatives));
    frame->start = static_cast<uint32_t>(text.size() - 1);
    frame->below = below;
    go(out, kind == Frame::OBJECT ? Configuration::KEY : Configuration::VALUE, std::move(frame), true);
    out.closing = true;
    return true;
}

bool Machine::await_items(const Ref<Frame>& frame, Ref<Frame>& out) const {
    if (frame->extensible < 0) {
        Ref<Frame> next = like(*frame);
        for (const Alternative& a : frame->alternatives)
            await_item(program_, *frame, a, next->alternatives, next->requests);
        frame->extensible = !next->alternatives.empty();
        if (frame->extensible) frame->items = std::move(next);
    }
    out = frame->items;
    return frame->extensible > 0;
}

bool Machine::end_key(const Configuration& in, std::string_view text, Configuration& out) {
    key_accepted({program_, *in.frame, text}, in.lexeme, matches_);
    if (matches_.empty()) return false;
    Ref<Frame> next = like(*in.frame);
    const bool tied = in.frame->tied();
    const bool keeps_keys = std::any_of(
        in.frame->alternatives.begin(), in.frame->alternatives.end(),
        [&](const Alternative& a) { return program_.objects[a.shape].has_classes(); });
    std::string key;
    if (tied || keeps_keys) key = decode_string(text.substr(in.lexeme.start + 1));
    for (const KeyMatch& match : matches_) {
        const Alternative& a = in.frame->alternatives[match.alternative];
        Alternative after = after_key(program_, a, match.property);
        Ref<Used> avoid;
        if (!a.ties.empty()) {
            avoid = member_avoids(program_, a, in.frame->written, key, match.property);
            std::erase_if(after.ties, [&](const ValueRef& tie) { return tie->member(key) == nullptr; });
        }
        after.awaited = add_request(next->requests, {match.type, std::move(avoid)});
        add_alternative(next->alternatives, std::move(after));
    }
    if (next->tied()) next->key = key;
    if (keeps_keys) next->used = Ref<Used>(new Used(in.frame->used, std::move(key)));
    go(out, Configuration::COLON, std::move(next), false);
    return true;
}

bool Machine::end_bare(const Configuration& in, std::string_view text, Configuration& out) {
    const std::string_view value = text.substr(0, text.size() - 1);
    // What can't follow any value needn't end this one.
    const char byte = text.back();
    if (in.frame->kind != Frame::ROOT && byte != ',' && byte != ']' && byte != '}' && byte > ' ') return false;
    bare_accepted({program_, *in.frame, value}, in.lexeme, accepted_);
    Configuration ended;
    return end_value(in.frame, in.lexeme.start, value, ended) && step(ended, text, out);
}

// `accepted_` are the requests that accept the value, which is `text` from `start` on.
bool Machine::end_value(const Ref<Frame>& frame, uint32_t start, std::string_view text, Configuration& out) const {
    if (accepted_.empty()) return false;
    if (frame->kind == Frame::ROOT) {
        out.trigger = frame->trigger;
        out.depth = 0;
        go(out, frame->trigger == NO_INDEX ? Configuration::DONE : Configuration::END_TEXT, Ref<Frame>(), false);
        return true;
    }
    Ref<Frame> next = like(*frame);
    const bool tied = frame->tied();
    Value value;
    if (tied || (frame->kind == Frame::ARRAY && has_unique(program_, frame->alternatives)))
        value = read_value(text.substr(start));
    for (const Alternative& a : frame->alternatives) {
        if (std::find(accepted_.begin(), accepted_.end(), a.awaited) == accepted_.end()) continue;
        Alternative after = a;
        after.awaited = NO_INDEX;
        if (tied) keep_equal(after, frame->kind, frame->written, frame->key, value.text);
        add_alternative(next->alternatives, std::move(after));
    }
    if (next->alternatives.empty()) return false;
    next->written = next->tied() ? frame->written + 1 : 0;
    if (frame->kind == Frame::ARRAY && has_unique(program_, next->alternatives) &&
        !Used::contains(frame->used, value.text))
        next->used = Ref<Used>(new Used(frame->used, std::make_shared<const Value>(std::move(value))));
    go(out, Configuration::AFTER, std::move(next), true);
    return true;
}

bool Machine::close(const Ref<Frame>& frame, std::string_view text, Configuration& out) {
    accepted_.clear();
    for (const Alternative& a : frame->alternatives)
        if (closes(*frame, a) && std::find(accepted_.begin(), accepted_.end(), a.request) == accepted_.end())
            accepted_.push_back(a.request);
    return end_value(frame->below, frame->start, text, out);
}

bool Machine::closes(const Frame& frame, const Alternative& a) const {
    return frame.kind == Frame::OBJECT ? object_closes(program_, a, frame.written)
                                       : array_closes(program_, a, frame.written);
}

bool Machine::closable(const Frame& frame) const {
    if (frame.closable < 0)
        frame.closable = std::any_of(frame.alternatives.begin(), frame.alternatives.end(),
                                     [&](const Alternative& a) { return closes(frame, a); });
    return frame.closable > 0;
}

bool Machine::extensible(const Frame& frame) const {
    if (frame.extensible < 0)
        frame.extensible = std::any_of(frame.alternatives.begin(), frame.alternatives.end(), [&](const Alternative& a) {
            return NextKey(program_, frame, a).takes_anything();
        });
    return frame.extensible > 0;
}

bool Machine::after_value(const Configuration& in, std::string_view text, Configuration& out) {
    const auto byte = static_cast<uint8_t>(text.back());
    if (byte <= ' ') return closable(*in.frame) && step_gap(in, byte, out);
    if (in.half) return false;
    const bool object = in.frame->kind == Frame::OBJECT;
    if (byte == (object ? '}' : ']')) return closable(*in.frame) && close(in.frame, text, out);
    if (byte != ',' || in_gap(in)) return false;
    if (object) {
        if (!extensible(*in.frame)) return false;
        go(out, Configuration::KEY, in.frame, true);
        return true;
    }
    Ref<Frame> items;
    if (!await_items(in.frame, items)) return false;
    go(out, Configuration::VALUE, std::move(items), true);
    return true;
}

bool Machine::is_final(const Configuration& at, std::string_view text) {
    switch (at.mode) {
        case Configuration::DONE:
        case Configuration::FREE_TEXT: return true;
        case Configuration::END_TEXT: return at.depth == trigger_end(at.trigger).size();
        case Configuration::TEXT: {
            if (at.lexeme.entries.empty() || at.lexeme.partial.stage != Partial::NONE) return false;
            const Entry& entry = at.lexeme.entries.front();
            return program_.language(entry.source).dfa.accepting[entry.a] != 0;
        }
        case Configuration::BARE: {
            if (at.frame->kind != Frame::ROOT) return false;
            if (at.frame->trigger != NO_INDEX && !trigger_end(at.frame->trigger).empty()) return false;
            bare_accepted({program_, *at.frame, text}, at.lexeme, accepted_);
            return !accepted_.empty();
        }
        default: return false;
    }
}

}  // namespace forge::grammar
