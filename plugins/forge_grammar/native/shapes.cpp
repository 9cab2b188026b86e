// The state of alternatives. Objects: `at` is the next declared property that may come; with keys in any order it's 0, and
// extra = [required ones to come, open ones to come, bits of those seen...]. Arrays: extra = counts for each `contains`.
#include "shapes.hpp"

#include <algorithm>

#include "canonical.hpp"
#include "distinct.hpp"
#include "words.hpp"

namespace forge::grammar {
namespace {

constexpr uint32_t SEEN = 2;

bool seen(const Alternative& a, uint32_t property) { return a.extra[SEEN + property / 32] >> (property % 32) & 1; }

uint32_t counted(const ObjectShape& shape, uint32_t count) {
    return shape.max != UNBOUNDED ? count + 1 : std::min(count + 1, shape.min);
}

// How many more keys the classes of a shape have.
uint32_t capacity(const Program& program, const ObjectShape& shape, const Ref<Used>& used) {
    uint64_t total = 0;
    for (uint32_t k = shape.first_class; k < shape.last_class; ++k) {
        const Language& language = program.language(program.classes[k].language);
        const uint32_t words = language.dfa.words_from(language.dfa.start);
        if (words == INFINITE_WORDS) return INFINITE_WORDS;
        total += words;
        for (uint32_t i = 0; i < shape.size(); ++i) {
            const std::string& name = program.text(shape.name(i));
            total -= accepts(language.dfa, decode_string(std::string_view(name).substr(1)));
        }
        for (const Used* node = used.get(); node != nullptr; node = node->below.get())
            total -= !declares(program, shape, node->text) && accepts(language.dfa, node->text);
    }
    return static_cast<uint32_t>(std::min<uint64_t>(total, INFINITE_WORDS));
}

uint32_t next_index(const ArrayShape& shape, uint32_t index) {
    if (shape.max != UNBOUNDED) return index + 1;
    return std::min(index + 1, std::max(static_cast<uint32_t>(shape.prefix.size()), shape.min));
}

// Whether an array can be completed from an index: some number of further items fits all bounds. The positions of the rest
// are alike, so that it's said at once how many of them it takes.
bool array_feasible(const ArrayShape& shape, uint32_t index, const std::vector<uint32_t>& counts) {
    const size_t n = shape.contains.size(), prefix = shape.prefix.size();
    if (n == 0) return index >= shape.min || shape.ceiling >= shape.min;
    // Of the further items: forced ones can't but count, possible ones may.
    std::vector<uint64_t> forced(counts.begin(), counts.end()), possible(forced);
    const auto add = [&](size_t at, uint64_t items) {
        for (size_t k = 0; k < n; ++k) {
            const Contains& c = shape.contains[k];
            if (c.both[at] >= 0) possible[k] += items;
            if (c.max != UNBOUNDED && c.neither[at] < 0) forced[k] += items;
        }
    };
    const auto exceeded = [&] {
        for (size_t k = 0; k < n; ++k)
            if (shape.contains[k].max != UNBOUNDED && forced[k] > shape.contains[k].max) return true;
        return false;
    };
    uint64_t i = index;
    for (;; ++i) {
        if (exceeded()) return false;
        uint64_t more = i < shape.min ? shape.min - i : 0;
        bool never = false;
        for (size_t k = 0; k < n; ++k) {
            const uint64_t needed = shape.contains[k].min > possible[k] ? shape.contains[k].min - possible[k] : 0;
            if (needed > 0 && shape.contains[k].both[std::min<uint64_t>(i, prefix)] < 0) never = i >= prefix;
            more = std::max(more, needed);
        }
        if (more == 0) return true;
        if (never || type_at(shape, i) < 0) return false;
        if (i >= prefix) {
            if (type_at(shape, i + more - 1) < 0) return false;
            add(prefix, more);
            return !exceeded();
        }
        add(i, 1);
    }
}

}  // namespace

uint32_t required_left(const Program& program, const Alternative& a) {
    return program.any_order ? a.extra[0] : program.objects[a.shape].required_from[a.at];
}

std::vector<uint32_t> open_properties(const Program& program, const Alternative& a) {
    const ObjectShape& shape = program.objects[a.shape];
    std::vector<uint32_t> open;
    for (uint32_t i = program.any_order ? 0 : a.at; i < shape.size(); ++i)
        if (shape.type(i) >= 0 && !(program.any_order && seen(a, i))) open.push_back(i);
    return open;
}

bool has_endless_keys(const Program& program, const ObjectShape& shape) {
    for (uint32_t k = shape.first_class; k < shape.last_class; ++k) {
        const Dfa& dfa = program.language(program.classes[k].language).dfa;
        if (dfa.start != Dfa::DEAD && dfa.words_from(dfa.start) == INFINITE_WORDS) return true;
    }
    return false;
}

int32_t type_at(const ArrayShape& shape, uint64_t index) {
    if (shape.max != UNBOUNDED && index >= shape.max) return -1;
    return index < shape.prefix.size() ? shape.prefix[index] : shape.rest;
}

bool object_can_close(const Program& program, const Alternative& a) {
    return a.count >= program.objects[a.shape].min && required_left(program, a) == 0;
}

NextKey::NextKey(const Program& program, const Frame& frame, const Alternative& a)
    : program_(program),
      frame_(frame),
      shape_(program.objects[a.shape]),
      a_(a),
      capacity_(capacity(program, shape_, frame.used)) {
    first_ = program.any_order ? 0 : a.at;
    last_ = program.any_order ? shape_.size() : std::min(shape_.next_required[a.at] + 1, shape_.size());
}

bool NextKey::feasible(uint32_t count, uint32_t required, uint32_t open, uint32_t capacity) const {
    if (shape_.max != UNBOUNDED && uint64_t{count} + required > shape_.max) return false;
    return capacity == INFINITE_WORDS || uint64_t{count} + open + capacity >= shape_.min;
}

bool NextKey::takes(uint32_t property) const {
    if (property < first_ || property >= last_ || shape_.type(property) < 0) return false;
    uint32_t required = shape_.required_from[property + 1], open = shape_.open_from[property + 1];
    if (program_.any_order) {
        if (seen(a_, property)) return false;
        required = a_.extra[0] - shape_.required(property);
        open = a_.extra[1] - 1;
    }
    if (!feasible(a_.count + 1, required, open, capacity_)) return false;
    return a_.ties.empty() ||
           is_fresh(program_, shape_.type(property),
                    member_avoids(program_, a_, frame_.written, shape_.names[property], property));
}

bool NextKey::takes_any(uint32_t low, uint32_t high) const {
    if (last_ - first_ < high - low) {
        for (uint32_t i = first_; i < last_; ++i)
            if (shape_.rank[i] >= low && shape_.rank[i] < high && takes(i)) return true;
        return false;
    }
    for (uint32_t i = low; i < high; ++i)
        if (takes(static_cast<uint32_t>(shape_.by_name[i]))) return true;
    return false;
}

bool NextKey::takes_class() const {
    if (capacity_ == 0 || (!a_.ties.empty() && capacity_ != INFINITE_WORDS)) return false;
    const uint32_t left = capacity_ == INFINITE_WORDS ? capacity_ : capacity_ - 1;
    if (program_.any_order) return feasible(a_.count + 1, a_.extra[0], a_.extra[1], left);
    return shape_.required_from[a_.at] == 0 && feasible(a_.count + 1, 0, 0, left);
}

bool NextKey::takes_anything() const { return takes_class() || takes_any(0, shape_.size()); }

Alternative start_object(const Program& program, uint32_t request, uint32_t shape) {
    Alternative a{request, shape, 0, 0, NO_INDEX, {}, {}};
    if (!program.any_order) return a;
    const ObjectShape& object = program.objects[shape];
    a.extra.assign(SEEN + (object.size() + 31) / 32, 0);
    a.extra[0] = object.required_from[0];
    a.extra[1] = object.open_from[0];
    return a;
}

Alternative start_array(const Program& program, uint32_t request, uint32_t shape) {
    return {request, shape, 0, 0, NO_INDEX, std::vector<uint32_t>(program.arrays[shape].contains.size()), {}};
}

Alternative after_key(const Program& program, const Alternative& a, uint32_t property) {
    const ObjectShape& shape = program.objects[a.shape];
    Alternative after = a;
    after.count = counted(shape, a.count);
    if (!program.any_order) {
        after.at = property == NO_INDEX ? shape.size() : property + 1;
    } else if (property != NO_INDEX) {
        after.extra[0] -= shape.required(property);
        after.extra[1] -= 1;
        after.extra[SEEN + property / 32] |= 1U << (property % 32);
    }
    return after;
}

bool array_can_close(const Program& program, const Alternative& a) {
    const ArrayShape& shape = program.arrays[a.shape];
    if (a.at < shape.min) return false;
    for (size_t k = 0; k < a.extra.size(); ++k)
        if (a.extra[k] < shape.contains[k].min) return false;
    return true;
}

void await_item(const Program& program, const Frame& frame, const Alternative& a, std::vector<Alternative>& out,
                std::vector<Request>& requests) {
    const ArrayShape& shape = program.arrays[a.shape];
    const int32_t item = type_at(shape, a.at);
    if (item < 0) return;
    const size_t at = std::min<size_t>(a.at, shape.prefix.size());
    const auto add = [&](int32_t type, std::vector<uint32_t> counts) {
        const uint32_t next = next_index(shape, a.at);
        if (type < 0 || !array_feasible(shape, next, counts)) return;
        Alternative after{a.request, a.shape, next, 0, NO_INDEX, std::move(counts), {}};
        Ref<Used> avoid = shape.unique ? frame.used : Ref<Used>();
        if (!a.ties.empty()) {
            after.ties = a.ties;
            avoid = item_avoids(program, after, frame.written, avoid);
            std::erase_if(after.ties, [&](const ValueRef& tie) { return tie->items.size() <= frame.written; });
        }
        if (!is_fresh(program, type, avoid)) return;
        after.awaited = add_request(requests, {type, std::move(avoid)});
        add_alternative(out, std::move(after));
    };
    // An item that counts for no `contains`: of the first one's other type where that has a maximum.
    int32_t plain = item;
    for (auto c = shape.contains.rbegin(); c != shape.contains.rend(); ++c)
        if (c->max != UNBOUNDED) plain = c->neither[at];
    add(plain, a.extra);
    for (size_t k = 0; k < shape.contains.size(); ++k) {
        const Contains& c = shape.contains[k];
        std::vector<uint32_t> counts = a.extra;
        if (c.max == UNBOUNDED && counts[k] >= c.min) continue;
        ++counts[k];
        add(c.both[at], std::move(counts));
    }
}

uint32_t add_request(std::vector<Request>& requests, Request request) {
    const auto at = std::find(requests.begin(), requests.end(), request);
    if (at != requests.end()) return static_cast<uint32_t>(at - requests.begin());
    requests.push_back(request);
    return static_cast<uint32_t>(requests.size() - 1);
}

void add_alternative(std::vector<Alternative>& alternatives, Alternative a) {
    if (std::find(alternatives.begin(), alternatives.end(), a) == alternatives.end())
        alternatives.push_back(std::move(a));
}

}  // namespace forge::grammar
