// Ties, and what can be completed to none of them.
#include "distinct.hpp"

#include <algorithm>

#include "shapes.hpp"
#include "words.hpp"

namespace forge::grammar {
namespace {

uint32_t values_of(const Program& program, int32_t type) { return program.types[static_cast<size_t>(type)].values; }

// A product of counts, as far as it matters.
class Product {
public:
    void times(uint32_t count) {
        endless_ = endless_ || count >= INFINITE_WORDS;
        if (!endless_) product_ *= count;
        endless_ = endless_ || product_ >= INFINITE_WORDS;
    }
    bool endless() const { return endless_; }
    bool more_than(size_t least) const { return endless_ || product_ > least; }

private:
    bool endless_ = false;
    uint64_t product_ = 1;
};

ValueRef part(const ValueRef& whole, const Value* value) { return {whole, value}; }

// Ties by the value that they have in the place in question.
struct Group {
    ValueRef value;
    std::vector<ValueRef> ties;
};

void add_to_group(std::vector<Group>& groups, ValueRef value, const ValueRef& tie) {
    const auto at = std::find_if(groups.begin(), groups.end(),
                                 [&](const Group& group) { return group.value->text == value->text; });
    if (at != groups.end())
        at->ties.push_back(tie);
    else
        groups.push_back({std::move(value), {tie}});
}

// The properties of the object that has as many more as there's room for; false if those are too few.
bool fullest_object(const Program& program, const Alternative& a, std::vector<uint32_t>& rest) {
    const ObjectShape& shape = program.objects[a.shape];
    rest = open_properties(program, a);
    if (shape.max != UNBOUNDED && uint64_t{a.count} + rest.size() > shape.max) {
        const uint64_t needed = uint64_t{a.count} + required_left(program, a);
        uint64_t optional = shape.max > needed ? shape.max - needed : 0;
        std::erase_if(rest, [&](uint32_t i) {
            if (shape.required(i)) return false;
            if (optional == 0) return true;
            --optional;
            return false;
        });
    }
    return uint64_t{a.count} + rest.size() >= shape.min;
}

// How many items an array can have whatever the items before are; INFINITE_WORDS: no end of them; 0: too few.
uint32_t fullest_array(const Program& program, const ArrayShape& shape) {
    const uint32_t ceiling = std::min(shape.ceiling, INFINITE_WORDS);
    if (!shape.unique) return ceiling;
    const auto prefix = static_cast<uint32_t>(shape.prefix.size());
    uint32_t length = 0;
    while (length < std::min(prefix, ceiling) && values_of(program, shape.prefix[length]) > length) ++length;
    if (length == prefix && length < ceiling)
        length = std::max(length, std::min(ceiling, values_of(program, shape.rest)));
    return length >= shape.min ? length : 0;
}

}  // namespace

bool is_fresh(const Program& program, int32_t id, const Ref<Used>& avoid) {
    if (!avoid) return true;
    const Type& type = program.types[static_cast<size_t>(id)];
    if (has_fresh_scalar(program, type, avoid)) return true;
    for (const int32_t shape : type.arrays) {
        Alternative a = start_array(program, 0, static_cast<uint32_t>(shape));
        tie(a, Value::ARRAY, avoid);
        if (array_differs(program, a, 0)) return true;
    }
    for (const int32_t shape : type.objects) {
        Alternative a = start_object(program, 0, static_cast<uint32_t>(shape));
        tie(a, Value::OBJECT, avoid);
        if (object_differs(program, a, 0)) return true;
    }
    return false;
}

void tie(Alternative& a, Value::Kind kind, const Ref<Used>& avoid) {
    for (const Used* node = avoid.get(); node != nullptr; node = node->below.get())
        if (node->value->kind == kind) a.ties.push_back(node->value);
}

bool object_closes(const Program& program, const Alternative& a, uint32_t written) {
    return object_can_close(program, a) &&
           std::none_of(a.ties.begin(), a.ties.end(), [&](const ValueRef& tie) { return tie->items.size() == written; });
}

bool array_closes(const Program& program, const Alternative& a, uint32_t written) {
    return array_can_close(program, a) &&
           std::none_of(a.ties.begin(), a.ties.end(), [&](const ValueRef& tie) { return tie->items.size() == written; });
}

bool object_differs(const Program& program, const Alternative& a, uint32_t written) {
    if (a.ties.empty() || object_closes(program, a, written)) return true;
    const ObjectShape& shape = program.objects[a.shape];
    const bool room = shape.max == UNBOUNDED || uint64_t{a.count} + required_left(program, a) < shape.max;
    if (room && has_endless_keys(program, shape)) return true;
    std::vector<uint32_t> rest;
    if (!fullest_object(program, a, rest)) return false;
    Product values;
    for (const uint32_t i : rest) values.times(values_of(program, shape.type(i)));
    if (values.endless()) return true;
    const auto full = std::count_if(a.ties.begin(), a.ties.end(), [&](const ValueRef& tie) {
        return tie->items.size() == written + rest.size() &&
               std::all_of(rest.begin(), rest.end(), [&](uint32_t i) { return tie->member(shape.names[i]) != nullptr; });
    });
    return values.more_than(static_cast<size_t>(full));
}

bool array_differs(const Program& program, const Alternative& a, uint32_t written) {
    if (a.ties.empty() || array_closes(program, a, written)) return true;
    const ArrayShape& shape = program.arrays[a.shape];
    const uint32_t longest = fullest_array(program, shape);
    if (!shape.contains.empty() || longest <= written) return false;
    if (longest >= INFINITE_WORDS) return true;
    Product values;
    for (uint32_t i = written; i < longest && !values.endless(); ++i) {
        const uint32_t count = values_of(program, type_at(shape, i));
        if (i >= shape.prefix.size() && count == 1) break;  // and so have all others, if they may be equal
        values.times(count >= INFINITE_WORDS || !shape.unique ? count : count - i);
    }
    const auto full = std::count_if(a.ties.begin(), a.ties.end(),
                                    [&](const ValueRef& tie) { return tie->items.size() == longest; });
    return values.more_than(static_cast<size_t>(full));
}

Ref<Used> member_avoids(const Program& program, const Alternative& a, uint32_t written, const std::string& key,
                        uint32_t property) {
    std::vector<Group> groups;
    for (const ValueRef& tie : a.ties)
        if (const Value* value = tie->member(key)) add_to_group(groups, part(tie, value), tie);
    Ref<Used> avoid;
    if (groups.empty()) return avoid;
    Alternative after = after_key(program, a, property);
    for (Group& group : groups) {
        after.ties = std::move(group.ties);
        if (!object_differs(program, after, written + 1)) avoid = Ref<Used>(new Used(avoid, std::move(group.value)));
    }
    return avoid;
}

Ref<Used> item_avoids(const Program& program, const Alternative& a, uint32_t written, const Ref<Used>& avoid) {
    std::vector<Group> groups;
    for (const ValueRef& tie : a.ties)
        if (tie->items.size() > written) add_to_group(groups, part(tie, &tie->items[written]), tie);
    Ref<Used> all = avoid;
    Alternative after = a;
    for (Group& group : groups) {
        after.ties = std::move(group.ties);
        if (!array_differs(program, after, written + 1)) all = Ref<Used>(new Used(all, std::move(group.value)));
    }
    return all;
}

void add_hopeless_keys(const Program& program, const Frame& frame, uint32_t alternative, int32_t type,
                       std::vector<std::string>& keys) {
    const Alternative& a = frame.alternatives[alternative];
    std::vector<std::string> known;
    for (const ValueRef& tie : a.ties) known.insert(known.end(), tie->keys.begin(), tie->keys.end());
    std::sort(known.begin(), known.end());
    known.erase(std::unique(known.begin(), known.end()), known.end());
    for (std::string& key : known)
        if (!is_fresh(program, type, member_avoids(program, a, frame.written, key, NO_INDEX)))
            keys.push_back(std::move(key));
}

void keep_equal(Alternative& a, Frame::Kind kind, uint32_t written, const std::string& key, const std::string& text) {
    std::erase_if(a.ties, [&](const ValueRef& tie) {
        if (kind == Frame::ARRAY) return tie->items.size() <= written || tie->items[written].text != text;
        const Value* value = tie->member(key);
        return value == nullptr || value->text != text;
    });
}

}  // namespace forge::grammar
