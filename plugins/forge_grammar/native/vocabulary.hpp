// A tokenizer's vocabulary, prepared for masks: tries of its tokens, and what may be said of plain tokens beforehand.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cache.hpp"
#include "program.hpp"

namespace forge::grammar {

// A trie laid flat in depth-first order: a node's subtree is [node, skip). So are its tokens.
struct Trie {
    std::vector<uint8_t> byte;
    std::vector<uint16_t> depth;  // of the node's parent; 0 for first bytes
    std::vector<uint32_t> skip;
    std::vector<uint32_t> first;       // index of the subtree's first token; [nodes] is their number
    std::vector<uint32_t> own_end;     // [first, own_end) are the tokens that end at the node
    std::vector<uint8_t> plain_below;  // whether all of the subtree's tokens go on with plain text only, or not at all
    std::vector<uint32_t> tokens;
    uint32_t max_depth = 0;  // bytes of the longest token

    Trie(const std::vector<std::string>& token_bytes, std::vector<uint32_t> ids);
    uint32_t nodes() const { return static_cast<uint32_t>(byte.size()); }
    size_t nbytes() const;

private:
    void mark_plain(const std::vector<std::string>& token_bytes);
};

// Languages by their bytes, each once while someone holds it.
class LanguagePool {
public:
    std::shared_ptr<const Language> intern(const std::string& data);

private:
    std::mutex mutex_;
    uint64_t next_ = 0;
    std::map<std::string, std::weak_ptr<const Language>> languages_;
    size_t sweep_at_ = 256;
};

// A plain token is not empty, consists of whole code points, and has no quote, backslash or control character: inside of
// a JSON string it is text and nothing else.
class Vocabulary {
public:
    Vocabulary(std::vector<std::string> token_bytes, const std::vector<int64_t>& special,
               const std::vector<int64_t>& eos, int64_t width, size_t cache_bytes);

    // Mask of the plain tokens of at most so many code points.
    const std::vector<uint32_t>& plain_mask(uint32_t code_points) const;
    // Mask of the other tokens without a quote that may stand where any text may: with escapes, or a part of a character.
    const std::vector<uint32_t>& text_mask() const { return text_mask_; }
    bool is_eos(int64_t id) const;
    // Bytes of a token that may be part of a text; empty for all others.
    std::string_view bytes(int64_t id) const {
        return id < 0 || id >= static_cast<int64_t>(tokens_.size()) ? std::string_view()
                                                                    : tokens_[static_cast<size_t>(id)];
    }
    size_t width() const { return width_; }
    size_t words() const { return (width_ + 31) / 32; }
    size_t nbytes();

    const std::vector<uint32_t>& eos() const { return eos_; }
    const Trie& all() const { return *all_; }
    const Trie& plain() const { return *plain_; }
    const Trie& rest() const { return *rest_; }                // all that aren't plain
    const Trie& quoted() const { return *quoted_; }            // all that have a quote
    const Trie& commas() const { return *commas_; }            // all that have a comma
    const Trie& rest_commas() const { return *rest_commas_; }  // all that have one and aren't plain
    uint32_t longest_plain() const { return longest_plain_; }  // in code points
    bool spans_keys() const { return spans_keys_; }  // whether a token may hold the end of a key and part of the next

    LanguagePool languages;
    MaskCache plain_cache;  // of plain tokens by language, state and lengths

private:
    std::vector<std::string> tokens_;  // special ones emptied
    std::vector<uint32_t> eos_;
    size_t width_;
    uint32_t longest_plain_ = 0;
    bool spans_keys_ = false;
    std::vector<uint32_t> counts_;
    std::vector<uint32_t> text_mask_;
    std::vector<std::vector<uint32_t>> plain_masks_;  // [0] is empty, [i + 1] has at most counts_[i] code points
    std::unique_ptr<Trie> all_, plain_, rest_, quoted_, commas_, rest_commas_;
};

}  // namespace forge::grammar
