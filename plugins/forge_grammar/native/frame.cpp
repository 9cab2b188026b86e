// Hashes of frames.
#include "frame.hpp"

#include <functional>

namespace forge::grammar {

Used::Used(Ref<Used> below_, std::string text_) : below(std::move(below_)), text(std::move(text_)) {
    if (below) hash = below->hash;
    hash.mix(std::hash<std::string_view>{}(text));
}

bool Used::contains(const Ref<Used>& used, std::string_view text) {
    for (const Used* node = used.get(); node != nullptr; node = node->below.get())
        if (node->text == text) return true;
    return false;
}

const Hash& Frame::hash() const {
    if (hashed_) return hash_;
    std::vector<const Frame*> path;
    for (const Frame* frame = this; frame != nullptr && !frame->hashed_; frame = frame->below.get())
        path.push_back(frame);
    for (; !path.empty(); path.pop_back()) path.back()->compute_hash();
    return hash_;
}

void Frame::compute_hash() const {
    if (below) hash_ = below->hash_;
    hash_.mix(uint64_t{kind} | uint64_t{trigger} << 8);
    for (const Alternative& a : alternatives) {
        hash_.mix(uint64_t{a.request} << 32 | a.shape);
        hash_.mix(uint64_t{a.at} << 32 | a.count);
        hash_.mix(a.awaited);
        for (const uint32_t x : a.extra) hash_.mix(x);
    }
    for (const Request& request : requests)
        hash_.mix(uint64_t{static_cast<uint32_t>(request.type)} << 1 | request.unique);
    hash_.mix(alternatives.size() << 32 | requests.size());
    if (used) {
        hash_.mix(used->hash.a);
        hash_.mix(used->hash.b);
    }
    hashed_ = true;
}

}  // namespace forge::grammar
