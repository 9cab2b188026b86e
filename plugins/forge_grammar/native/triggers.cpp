// Free text, and the texts before and after a trigger's value.
#include "machine.hpp"

namespace forge::grammar {

void Machine::root_value(uint32_t trigger, int32_t type, Configuration& out) const {
    Ref<Frame> root(new Frame);
    root->trigger = trigger;
    root->requests.push_back({type, {}});
    go(out, Configuration::VALUE, std::move(root), false);
}

// The text so far ends with `depth` bytes of a trigger, the longest ending that begins any.
bool Machine::free_text(uint32_t trigger, uint32_t depth, uint8_t byte, Configuration& out) const {
    const auto first = [&](uint32_t i) -> const std::string& { return program_.texts[program_.triggers[i].trigger]; };
    std::string tail;
    if (depth > 0) tail = first(trigger).substr(0, depth);
    tail.push_back(static_cast<char>(byte));
    const auto count = static_cast<uint32_t>(program_.triggers.size());
    for (std::string_view rest = tail; !rest.empty(); rest.remove_prefix(1))
        for (uint32_t i = 0; i < count; ++i)
            if (first(i) == rest) {
                begun(i, rest, out);
                return true;
            }
    go(out, Configuration::FREE_TEXT, Ref<Frame>(), false);
    for (std::string_view rest = tail; !rest.empty(); rest.remove_prefix(1))
        for (uint32_t i = 0; i < count; ++i)
            if (first(i).starts_with(rest)) {
                out.trigger = i;
                out.depth = static_cast<uint32_t>(rest.size());
                return true;
            }
    out.trigger = NO_INDEX;
    out.depth = 0;
    return true;
}

// After so much of the text before a trigger's value.
void Machine::begun(uint32_t trigger, std::string_view so_far, Configuration& out) const {
    for (uint32_t i = 0; i < program_.triggers.size(); ++i)
        if (trigger_begin(i) == so_far) {
            root_value(i, static_cast<int32_t>(program_.triggers[i].type), out);
            return;
        }
    const auto depth = static_cast<uint32_t>(so_far.size());
    go(out, Configuration::BEGIN_TEXT, Ref<Frame>(), false);
    out.trigger = trigger;
    out.depth = depth;
}

bool Machine::begin_text(const Configuration& in, uint8_t byte, Configuration& out) const {
    std::string so_far = trigger_begin(in.trigger).substr(0, in.depth);
    so_far.push_back(static_cast<char>(byte));
    for (uint32_t i = 0; i < program_.triggers.size(); ++i)
        if (trigger_begin(i).starts_with(so_far)) {
            begun(i, so_far, out);
            return true;
        }
    return false;
}

bool Machine::end_text(const Configuration& in, uint8_t byte, Configuration& out) const {
    const std::string& end = trigger_end(in.trigger);
    if (in.depth == end.size()) return free_text(NO_INDEX, 0, byte, out);
    if (byte != static_cast<uint8_t>(end[in.depth])) return false;
    const uint32_t trigger = in.trigger, depth = in.depth + 1;
    const bool over = depth == end.size();
    go(out, over ? Configuration::FREE_TEXT : Configuration::END_TEXT, Ref<Frame>(), false);
    out.trigger = over ? NO_INDEX : trigger;
    out.depth = over ? 0 : depth;
    return true;
}

}  // namespace forge::grammar
