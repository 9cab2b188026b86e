// Argument checks that the bindings of operations share.
#pragma once

#include <nanobind/ndarray.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace forge {

// Throws std::invalid_argument, which Python sees as a ValueError, naming the argument and both shapes.
template <class A>
void expect_shape(const char* name, const A& array, std::initializer_list<std::int64_t> shape) {
    auto show = [](auto begin, auto end) {
        std::string text = "[";
        for (auto i = begin; i != end; ++i) text += (i == begin ? "" : ", ") + std::to_string(*i);
        return text + "]";
    };
    bool equal = array.ndim() == shape.size();
    std::size_t axis = 0;
    for (const std::int64_t size : shape) equal = equal && static_cast<std::int64_t>(array.shape(axis++)) == size;
    if (equal) return;
    throw std::invalid_argument(std::string(name) + " must have shape " + show(shape.begin(), shape.end()) +
                                ", has " + show(array.shape_ptr(), array.shape_ptr() + array.ndim()));
}

// Throws std::invalid_argument unless all values are in [0, limit).
inline void expect_range(const char* name, const std::int64_t* values, std::int64_t count, std::int64_t limit) {
    for (std::int64_t i = 0; i < count; ++i) {
        if (values[i] >= 0 && values[i] < limit) continue;
        throw std::invalid_argument(std::string(name) + " has " + std::to_string(values[i]) + ", outside 0 to " +
                                    std::to_string(limit - 1));
    }
}

}  // namespace forge
