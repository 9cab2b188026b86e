// A cache of masks under a budget of bytes: what was used longest ago goes first. Safe for any number of threads.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace forge::grammar {

// 128 bits that stand for what they were mixed from.
struct Hash {
    uint64_t a = 0x9E3779B97F4A7C15, b = 0xC2B2AE3D27D4EB4F;

    void mix(uint64_t x) {
        a = scramble(a ^ x);
        b = scramble(b + x * 0xFF51AFD7ED558CCD);
    }
    static uint64_t scramble(uint64_t x) {
        x ^= x >> 32;
        x *= 0xD6E8FEB86659FD93;
        x ^= x >> 29;
        x *= 0xA0761D6478BD642F;
        return x ^ (x >> 32);
    }
    bool operator==(const Hash&) const = default;
};

// Tokens, as a list where they are few, otherwise as bits.
struct TokenSet {
    std::vector<uint32_t> ids;
    std::vector<uint32_t> bits;

    // Takes the ids; `words` is the length of a mask.
    TokenSet(const std::vector<uint32_t>& tokens, size_t words) {
        if (tokens.size() <= words) {
            ids = tokens;
            return;
        }
        bits.assign(words, 0);
        for (const uint32_t id : tokens) bits[id / 32] |= 1U << (id % 32);
    }
    void add_to(uint32_t* row) const {
        for (const uint32_t id : ids) row[id / 32] |= 1U << (id % 32);
        for (size_t i = 0; i < bits.size(); ++i) row[i] |= bits[i];
    }
    size_t nbytes() const { return sizeof(TokenSet) + 4 * (ids.size() + bits.size()) + 96; }
};

class MaskCache {
public:
    explicit MaskCache(size_t budget) : budget_(budget) {}

    std::shared_ptr<const TokenSet> find(const Hash& key) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto at = index_.find(key);
        if (at == index_.end()) return nullptr;
        order_.splice(order_.begin(), order_, at->second);
        return at->second->second;
    }
    void add(const Hash& key, std::shared_ptr<const TokenSet> set) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (set->nbytes() > budget_ || index_.contains(key)) return;
        bytes_ += set->nbytes();
        order_.emplace_front(key, std::move(set));
        index_.emplace(key, order_.begin());
        while (bytes_ > budget_) {
            bytes_ -= order_.back().second->nbytes();
            index_.erase(order_.back().first);
            order_.pop_back();
        }
    }
    size_t nbytes() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return bytes_;
    }

private:
    struct Digest {
        size_t operator()(const Hash& key) const { return key.a; }
    };
    using Order = std::list<std::pair<Hash, std::shared_ptr<const TokenSet>>>;
    const size_t budget_;
    size_t bytes_ = 0;
    std::mutex mutex_;
    Order order_;
    std::unordered_map<Hash, Order::iterator, Digest> index_;
};

}  // namespace forge::grammar
