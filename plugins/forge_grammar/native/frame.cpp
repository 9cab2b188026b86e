// Hashes of frames.
#include "frame.hpp"

#include <functional>

namespace forge::grammar {

Used::Used(Ref<Used> below_, std::string key) : below(std::move(below_)), text(std::move(key)) {
    if (below) hash = below->hash;
    hash.mix(std::hash<std::string_view>{}(text));
}

Used::Used(Ref<Used> below_, ValueRef value_) : Used(std::move(below_), value_->text) { value = std::move(value_); }

bool Used::contains(const Ref<Used>& used, std::string_view text) {
    for (const Used* node = used.get(); node != nullptr; node = node->below.get())
        if (node->text == text) return true;
    return false;
}

bool Used::equal(const Ref<Used>& a, const Ref<Used>& b) {
    const Used *x = a.get(), *y = b.get();
    for (; x != y; x = x->below.get(), y = y->below.get())
        if (x == nullptr || y == nullptr || x->hash != y->hash || x->text != y->text) return false;
    return true;
}

Hash Frame::hash() const {
    Hash hash;
    if (below) hash = below->hash_below();
    mix_alternatives(hash);
    for (const Request& request : requests) {
        hash.mix(static_cast<uint32_t>(request.type));
        if (request.avoid) hash.mix(request.avoid->hash.a);
    }
    if (used) hash.mix(used->hash.a);
    return hash;
}

// The items of a unique array bear on nothing but its next one.
const Hash& Frame::hash_below() const {
    if (hashed_) return hash_;
    std::vector<const Frame*> path;
    for (const Frame* frame = this; frame != nullptr && !frame->hashed_; frame = frame->below.get())
        path.push_back(frame);
    for (; !path.empty(); path.pop_back()) {
        const Frame& frame = *path.back();
        if (frame.below) frame.hash_ = frame.below->hash_;
        frame.mix_alternatives(frame.hash_);
        if (frame.used && frame.kind == OBJECT) frame.hash_.mix(frame.used->hash.a);
        frame.hashed_ = true;
    }
    return hash_;
}

void Frame::mix_alternatives(Hash& hash) const {
    hash.mix(uint64_t{kind} | uint64_t{trigger} << 8);
    bool ties = false;
    for (const Alternative& a : alternatives) {
        hash.mix(uint64_t{a.request} << 32 | a.shape);
        hash.mix(uint64_t{a.at} << 32 | a.count);
        hash.mix(a.awaited);
        for (const uint32_t x : a.extra) hash.mix(x);
        for (const ValueRef& tie : a.ties) hash.mix(std::hash<std::string_view>{}(tie->text));
        hash.mix(a.ties.size());
        ties = ties || !a.ties.empty();
    }
    for (const Request& request : requests) hash.mix(static_cast<uint32_t>(request.type));
    hash.mix(alternatives.size() << 32 | requests.size());
    if (!ties) return;
    hash.mix(written);
    hash.mix(std::hash<std::string_view>{}(key));
}

}  // namespace forge::grammar
