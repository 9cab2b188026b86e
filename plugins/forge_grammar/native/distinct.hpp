// Values that mustn't equal earlier ones, while they're being written.
//
// An array of unique items, or something inside of an item, has ties: the values that it mustn't become and still could, by
// what has been written of it. It goes on only in ways after which some value is left that is none of its ties. Of the ways
// that a shape has, so many are looked at that the answer is found by counting: to end now, to have all members that
// there's room for, or to have members without end. A way that only other ways would have left open isn't taken.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "frame.hpp"

namespace forge::grammar {

// Whether a type has a value that is none of `avoid`, as far as the ways that are looked at tell.
bool is_fresh(const Program& program, int32_t type, const Ref<Used>& avoid);

// Gives an alternative at its start the ties that it has by what its value must avoid.
void tie(Alternative& a, Value::Kind kind, const Ref<Used>& avoid);

// Whether an object or array of so many written members may end here.
bool object_closes(const Program& program, const Alternative& a, uint32_t written);
bool array_closes(const Program& program, const Alternative& a, uint32_t written);

// Whether it can be completed to none of its ties.
bool object_differs(const Program& program, const Alternative& a, uint32_t written);
bool array_differs(const Program& program, const Alternative& a, uint32_t written);

// The values that the member of a key mustn't have. property: NO_INDEX for a key of a class; the alternative: before it.
Ref<Used> member_avoids(const Program& program, const Alternative& a, uint32_t written, const std::string& key,
                        uint32_t property);

// The values that the next item mustn't have, added to `avoid`. The alternative: after it, with the ties before it.
Ref<Used> item_avoids(const Program& program, const Alternative& a, uint32_t written, const Ref<Used>& avoid);

// Adds the keys of ties that would leave no value for a member of that type.
void add_hopeless_keys(const Program& program, const Frame& frame, uint32_t alternative, int32_t type,
                       std::vector<std::string>& keys);

// Narrows the ties to those with the value just written: of the key, or at the index `written`.
void keep_equal(Alternative& a, Frame::Kind kind, uint32_t written, const std::string& key, const std::string& text);

}  // namespace forge::grammar
