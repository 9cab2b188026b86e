// Open objects and arrays: immutable frames, shared by the configurations of one matcher.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cache.hpp"
#include "canonical.hpp"
#include "program.hpp"

namespace forge::grammar {

inline constexpr uint32_t NO_INDEX = 0xFFFFFFFF;

// A reference to a node that counts its references and has the next one `below`. Not for several threads: nodes belong
// to one matcher. Long chains are let go of without recursion.
template <typename T>
class Ref {
public:
    Ref() = default;
    explicit Ref(T* node) : node_(node) { retain(); }
    Ref(const Ref& other) : node_(other.node_) { retain(); }
    Ref(Ref&& other) noexcept : node_(std::exchange(other.node_, nullptr)) {}
    Ref& operator=(const Ref& other) {
        if (node_ == other.node_) return *this;
        Ref copy(other);
        std::swap(node_, copy.node_);
        return *this;
    }
    Ref& operator=(Ref&& other) noexcept {
        std::swap(node_, other.node_);
        return *this;
    }
    ~Ref() { release(std::exchange(node_, nullptr)); }
    T* get() const { return node_; }
    T* operator->() const { return node_; }
    T& operator*() const { return *node_; }
    explicit operator bool() const { return node_ != nullptr; }

private:
    void retain() const {
        if (node_ != nullptr) ++node_->references;
    }
    static void release(T* node) {
        while (node != nullptr && --node->references == 0) {
            T* below = std::exchange(node->below.node_, nullptr);
            delete node;
            node = below;
        }
    }
    T* node_ = nullptr;
};

using ValueRef = std::shared_ptr<const Value>;  // of a part: it keeps the whole alive

// What mustn't come again: keys as they are, or values.
struct Used {
    uint32_t references = 0;
    Ref<Used> below;
    ValueRef value;
    std::string text;  // the key; of a value its canonical text
    Hash hash;         // of all of them

    Used(Ref<Used> below, std::string key);
    Used(Ref<Used> below, ValueRef value);
    static bool contains(const Ref<Used>& used, std::string_view text);
    static bool equal(const Ref<Used>& a, const Ref<Used>& b);
};

// What a value is awaited as: a type, and none of the values to avoid.
struct Request {
    int32_t type;
    Ref<Used> avoid;
    bool operator==(const Request& other) const { return type == other.type && Used::equal(avoid, other.avoid); }
};

// One way to read what is open. request: which of the frame below it answers. at: index of the next declared property, or
// of the next item. awaited: index of the request for the value to come. extra: see shapes.hpp. ties: the values that it
// mustn't become and still could, see distinct.hpp.
struct Alternative {
    uint32_t request, shape, at, count, awaited = NO_INDEX;
    std::vector<uint32_t> extra;
    std::vector<ValueRef> ties;
    bool operator==(const Alternative&) const = default;
};

struct Frame {
    enum Kind : uint8_t { ROOT, OBJECT, ARRAY };

    uint32_t references = 0;
    Kind kind = ROOT;
    bool within_unique = false;  // whether it's inside of an item of a unique array
    uint32_t trigger = NO_INDEX;
    uint32_t start = 0;  // where its text begins
    Ref<Frame> below;
    std::vector<Alternative> alternatives;
    std::vector<Request> requests;  // for the value to come
    Ref<Used> used;
    // Only kept while there are ties: how many members are complete, and the key of the next one.
    uint32_t written = 0;
    std::string key;

    // Computed when first asked for: -1 unknown. items: the frame that awaits one more item.
    mutable int8_t closable = -1, extensible = -1;
    mutable Ref<Frame> items;

    bool tied() const {
        return std::any_of(alternatives.begin(), alternatives.end(), [](const Alternative& a) { return !a.ties.empty(); });
    }
    // Of all that bears on what follows: where this frame is the top one; and where it isn't, up to the next item.
    Hash hash() const;

private:
    const Hash& hash_below() const;
    void mix_alternatives(Hash& hash) const;
    mutable Hash hash_;  // as one that isn't the top
    mutable bool hashed_ = false;
};

}  // namespace forge::grammar
