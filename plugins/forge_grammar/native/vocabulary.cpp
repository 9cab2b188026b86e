// Builds the tries and the masks of plain tokens.
#include "vocabulary.hpp"

#include <algorithm>
#include <stdexcept>

#include "characters.hpp"
#include "utf8.hpp"

namespace forge::grammar {
namespace {

constexpr size_t LONGEST_TOKEN = 65535;

// The number of code points of a plain token; 0 for others.
uint32_t plain_length(std::string_view token) {
    uint32_t n = 0;
    for (size_t at = 0; at < token.size(); ++n) {
        const uint32_t cp = next_code_point(token, at);
        if (cp == 0xFFFFFFFF || cp < 0x20 || cp == '"' || cp == '\\') return 0;
    }
    return n;
}

// Whether a token without a quote may stand in a JSON string, at its end maybe with part of a character.
bool is_text(std::string_view token) {
    Partial partial;
    return std::all_of(token.begin(), token.end(), [&](char c) {
        return c != '"' && read_json(partial, static_cast<uint8_t>(c)) != REFUSED;
    });
}

// Whether a token has the end of a key, a value, and more than the quote of the next key.
bool has_key_end_and_start(std::string_view token) {
    size_t at = 0;
    for (const char c : std::string_view("\":,\"")) {
        at = token.find(c, at);
        if (at == std::string_view::npos) return false;
        ++at;
    }
    return at < token.size();
}

template <typename T>
size_t held(const std::vector<T>& v) {
    return v.capacity() * sizeof(T);
}

}  // namespace

Trie::Trie(const std::vector<std::string>& token_bytes, std::vector<uint32_t> ids) : tokens(std::move(ids)) {
    std::stable_sort(tokens.begin(), tokens.end(),
                     [&](uint32_t x, uint32_t y) { return token_bytes[x] < token_bytes[y]; });
    std::vector<uint32_t> open;  // the path of the token before
    const std::string* before = nullptr;
    auto close = [&](size_t to) {
        for (; open.size() > to; open.pop_back()) skip[open.back()] = nodes();
    };
    for (uint32_t i = 0; i < tokens.size(); ++i) {
        const std::string& token = token_bytes[tokens[i]];
        size_t common = 0;
        if (before != nullptr)
            common = static_cast<size_t>(
                std::mismatch(token.begin(), token.end(), before->begin(), before->end()).first - token.begin());
        close(common);
        for (size_t d = common; d < token.size(); ++d) {
            open.push_back(nodes());
            byte.push_back(static_cast<uint8_t>(token[d]));
            depth.push_back(static_cast<uint16_t>(d));
            skip.push_back(0);
            first.push_back(i);
            own_end.push_back(i);
        }
        own_end[open.back()] = i + 1;
        max_depth = std::max(max_depth, static_cast<uint32_t>(token.size()));
        before = &token;
    }
    close(0);
    first.push_back(static_cast<uint32_t>(tokens.size()));
    mark_plain(token_bytes);
    byte.shrink_to_fit(), depth.shrink_to_fit(), skip.shrink_to_fit(), first.shrink_to_fit(), own_end.shrink_to_fit();
}

void Trie::mark_plain(const std::vector<std::string>& token_bytes) {
    plain_below.assign(nodes(), 1);
    std::vector<uint32_t> path(max_depth);
    uint32_t node = 0;
    for (uint32_t i = 0; i < tokens.size(); ++i) {
        const std::string_view token = token_bytes[tokens[i]];
        // In depth-first order the nodes of a token's own are those up to its end.
        for (; node < nodes() && first[node] <= i; ++node) path[depth[node]] = node;
        // From the last byte that isn't part of plain text on, the token's nodes are fine.
        size_t plain = token.size();
        for (size_t from = token.size(); from-- > 0;) {
            const auto byte = static_cast<uint8_t>(token[from]);
            if (byte < 0x20 || byte == '"' || byte == '\\') break;
            if ((byte & 0xC0) == 0x80) continue;
            if (plain_length(token.substr(from, plain - from)) == 0) break;
            plain = from;
        }
        for (size_t d = 0; d + 1 < plain; ++d) plain_below[path[d]] = 0;
    }
}

size_t Trie::nbytes() const {
    return held(byte) + held(depth) + held(skip) + held(first) + held(own_end) + held(tokens) + held(plain_below);
}

std::shared_ptr<const Language> LanguagePool::intern(const std::string& data) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto at = languages_.find(data); at != languages_.end())
        if (auto language = at->second.lock()) return language;
    const std::span bytes(reinterpret_cast<const uint8_t*>(data.data()), data.size());
    auto language = std::make_shared<const Language>(bytes, next_++);
    languages_[data] = language;
    if (languages_.size() > sweep_at_) {
        std::erase_if(languages_, [](const auto& entry) { return entry.second.expired(); });
        sweep_at_ = std::max<size_t>(256, 2 * languages_.size());
    }
    return language;
}

Vocabulary::Vocabulary(std::vector<std::string> token_bytes, const std::vector<int64_t>& special,
                       const std::vector<int64_t>& eos, int64_t width, size_t cache_bytes)
    : plain_cache(cache_bytes), tokens_(std::move(token_bytes)), width_(static_cast<size_t>(width)) {
    const auto count = static_cast<int64_t>(tokens_.size());
    if (width < count || width > int64_t{1} << 31)
        throw std::invalid_argument("the mask is narrower than the vocabulary");
    for (const std::string& token : tokens_)
        if (token.size() > LONGEST_TOKEN) throw std::invalid_argument("a token of more than 65535 bytes");
    for (const int64_t id : special) {
        if (id < 0 || id >= width) throw std::invalid_argument("a special token is out of range");
        if (id < count) tokens_[static_cast<size_t>(id)].clear();
    }
    for (const int64_t id : eos) {
        if (id < 0 || id >= width) throw std::invalid_argument("an end of sequence token is out of range");
        if (id < count) tokens_[static_cast<size_t>(id)].clear();
        eos_.push_back(static_cast<uint32_t>(id));
    }
    std::vector<uint32_t> all, plain, rest, quoted, commas, rest_commas, lengths(tokens_.size());
    text_mask_.assign(words(), 0);
    for (uint32_t id = 0; id < tokens_.size(); ++id) {
        if (tokens_[id].empty()) continue;
        lengths[id] = plain_length(tokens_[id]);
        longest_plain_ = std::max(longest_plain_, lengths[id]);
        spans_keys_ = spans_keys_ || has_key_end_and_start(tokens_[id]);
        all.push_back(id);
        (lengths[id] > 0 ? plain : rest).push_back(id);
        if (tokens_[id].find('"') != std::string::npos) quoted.push_back(id);
        if (lengths[id] == 0 && is_text(tokens_[id])) text_mask_[id / 32] |= 1U << (id % 32);
        if (tokens_[id].find(',') == std::string::npos) continue;
        commas.push_back(id);
        if (lengths[id] == 0) rest_commas.push_back(id);
    }
    plain_masks_.emplace_back(words());
    std::vector<uint32_t> by_length = plain;
    std::stable_sort(by_length.begin(), by_length.end(),
                     [&](uint32_t x, uint32_t y) { return lengths[x] < lengths[y]; });
    for (const uint32_t id : by_length) {
        if (counts_.empty() || counts_.back() != lengths[id]) {
            counts_.push_back(lengths[id]);
            plain_masks_.push_back(plain_masks_.back());
        }
        plain_masks_.back()[id / 32] |= 1U << (id % 32);
    }
    all_ = std::make_unique<Trie>(tokens_, std::move(all));
    plain_ = std::make_unique<Trie>(tokens_, std::move(plain));
    rest_ = std::make_unique<Trie>(tokens_, std::move(rest));
    quoted_ = std::make_unique<Trie>(tokens_, std::move(quoted));
    commas_ = std::make_unique<Trie>(tokens_, std::move(commas));
    rest_commas_ = std::make_unique<Trie>(tokens_, std::move(rest_commas));
}

const std::vector<uint32_t>& Vocabulary::plain_mask(uint32_t code_points) const {
    const auto at = std::upper_bound(counts_.begin(), counts_.end(), code_points);
    return plain_masks_[static_cast<size_t>(at - counts_.begin())];
}

bool Vocabulary::is_eos(int64_t id) const {
    return std::any_of(eos_.begin(), eos_.end(), [&](uint32_t x) { return static_cast<int64_t>(x) == id; });
}

size_t Vocabulary::nbytes() {
    size_t n = sizeof(Vocabulary) + held(tokens_) + held(text_mask_) + plain_cache.nbytes();
    for (const Trie* trie : {all_.get(), plain_.get(), rest_.get(), quoted_.get(), commas_.get(), rest_commas_.get()})
        n += trie->nbytes();
    for (const auto& mask : plain_masks_) n += held(mask);
    for (const std::string& token : tokens_) n += token.capacity() > 15 ? token.capacity() + 1 : 0;
    return n;
}

}  // namespace forge::grammar
