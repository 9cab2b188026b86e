// What shapes allow: which keys and items may come next, and when an object or array may end.
#pragma once

#include <vector>

#include "frame.hpp"

namespace forge::grammar {

// Whether the object may end, if it differs from what it mustn't be.
bool object_can_close(const Program& program, const Alternative& a);

// The declared properties that may still come, ascending, and how many of them are required.
std::vector<uint32_t> open_properties(const Program& program, const Alternative& a);
uint32_t required_left(const Program& program, const Alternative& a);

// Whether a shape's classes have keys without end.
bool has_endless_keys(const Program& program, const ObjectShape& shape);

// The type of an array's item, -1: there can't be one.
int32_t type_at(const ArrayShape& shape, uint64_t index);

// What may be the next key of one alternative: properties from first to last that `takes`, and keys of classes.
class NextKey {
public:
    NextKey(const Program& program, const Frame& frame, const Alternative& a);
    uint32_t first() const { return first_; }
    uint32_t last() const { return last_; }
    bool takes(uint32_t property) const;
    // Whether it takes one of by_name[low, high).
    bool takes_any(uint32_t low, uint32_t high) const;
    bool takes_class() const;
    bool takes_anything() const;

private:
    bool feasible(uint32_t count, uint32_t required, uint32_t open, uint32_t capacity) const;
    const Program& program_;
    const Frame& frame_;
    const ObjectShape& shape_;
    const Alternative& a_;
    uint32_t capacity_, first_, last_;
};

// The alternative at the start of a shape.
Alternative start_object(const Program& program, uint32_t request, uint32_t shape);
Alternative start_array(const Program& program, uint32_t request, uint32_t shape);

// The alternative after a property, or after a key of a class (NO_INDEX).
Alternative after_key(const Program& program, const Alternative& a, uint32_t property);

// Whether the array may end, if it differs from what it mustn't be.
bool array_can_close(const Program& program, const Alternative& a);

// Adds an alternative for each way in which one more item may be awaited, with its request among `requests`.
void await_item(const Program& program, const Frame& frame, const Alternative& a, std::vector<Alternative>& out,
                std::vector<Request>& requests);

// The index of a request, which is added if it isn't there.
uint32_t add_request(std::vector<Request>& requests, Request request);

// Adds an alternative if it isn't there.
void add_alternative(std::vector<Alternative>& alternatives, Alternative a);

}  // namespace forge::grammar
