// Masks by depth-first walks. Inside of strings, plain tokens are known beforehand or by the automaton alone; only the few
// others are walked.
#include "masks.hpp"

#include <algorithm>
#include <functional>

namespace forge::grammar {
namespace {

constexpr size_t GRAMMAR_CACHE_BYTES = 1 << 20;
constexpr uint32_t WORTH_CACHING = 48;  // nodes visited

// Lengths in a form that is the same wherever the same follows, for tokens of at most `longest` code points.
void normalize(const Language& language, uint32_t state, uint32_t longest, uint32_t& lo, uint32_t& hi) {
    if (language.dfa.universal(state)) {
        lo = std::min(lo, longest + 1);
        if (hi >= longest) hi = UNBOUNDED;
        return;
    }
    if (lo == 0 && hi >= longest && hi - longest >= language.longest_shortest) hi = UNBOUNDED;
    if (hi == UNBOUNDED && language.endless && lo > longest) lo = longest + 1;
}

// Whether the text is inside of an item of a unique array.
bool in_unique_item(const Program& program, const Configuration& at) {
    if (!at.frame) return false;
    return at.frame->within_unique ||
           (at.in_lexeme() && at.frame->kind == Frame::ARRAY &&
            std::any_of(at.frame->alternatives.begin(), at.frame->alternatives.end(),
                        [&](const Alternative& a) { return program.arrays[a.shape].unique; }));
}

// Of the text since the lowest frame with ties awaits a value: where that ends, it's compared.
uint64_t hash_of_tied(const Configuration& at, std::string_view text) {
    if (!at.frame->within_unique) return 0;
    uint32_t from = at.in_lexeme() ? at.lexeme.start : NO_INDEX, start = NO_INDEX;
    for (const Frame* frame = at.frame.get(); frame != nullptr; frame = frame->below.get()) {
        if (frame->tied()) start = from;
        from = frame->start;
    }
    return start == NO_INDEX ? 0 : std::hash<std::string_view>{}(text.substr(start)) | 1;
}

}  // namespace

Grammar::Grammar(std::shared_ptr<Vocabulary> vocabulary_, const std::vector<std::string>& languages,
                 std::vector<std::string> texts, std::string_view words)
    : vocabulary(std::move(vocabulary_)),
      program(vocabulary->languages, languages, std::move(texts), words),
      cache(GRAMMAR_CACHE_BYTES) {}

void Masks::fill(Machine& machine, const Configuration& at, Text& text, uint32_t* row) {
    std::fill(row, row + vocabulary_.words(), 0);
    text.reserve(vocabulary_.all().max_depth);
    // Where a token may end an item of a unique array and begin the next one, what follows depends on the whole item.
    const bool unique = in_unique_item(machine.program(), at);
    const bool split = splits(machine, at, text.view());
    const bool any = split && takes_any_plain(machine, at);
    if (split) add_plain(machine, at, text, row);
    if (any) {
        const std::vector<uint32_t>& mask = vocabulary_.text_mask();
        for (size_t i = 0; i < mask.size(); ++i) row[i] |= mask[i];
    }
    const Trie& trie = any ? vocabulary_.quoted() : split ? vocabulary_.rest() : vocabulary_.all();
    add_cached(machine, at, text, trie, !unique, row);
    if (unique) {
        start_walk(at);
        walk(machine, text, split ? vocabulary_.rest_commas() : vocabulary_.commas());
        for (const uint32_t id : found_) row[id / 32] |= 1U << (id % 32);
    }
    if (!machine.is_final(at, text.view())) return;
    for (const uint32_t id : vocabulary_.eos()) row[id / 32] |= 1U << (id % 32);
}

// Whether plain tokens may be looked at apart from the others: between the characters of a string or raw text, where no
// text that is taken bears on them.
bool Masks::splits(const Machine& machine, const Configuration& at, std::string_view text) const {
    if (at.mode == Configuration::TEXT) return !at.lexeme.entries.empty() && at.lexeme.partial.stage == Partial::NONE;
    if (at.mode != Configuration::STRING && at.mode != Configuration::IN_KEY) return false;
    if (at.lexeme.partial.stage != Partial::NONE) return false;
    const Scene scene{machine.program(), *at.frame, text};
    return std::none_of(at.lexeme.entries.begin(), at.lexeme.entries.end(), [&](const Entry& entry) {
        if (entry.kind != Entry::TERM && entry.kind != Entry::KEY_CLASS) return false;
        const Formed f = formed(machine.program(), at.lexeme, entry);
        // With words without end after any token, it's only at the closing quote that taken texts matter.
        if (f.hi == UNBOUNDED && f.language.endless) return false;
        if (f.language.dfa.universal(f.state) && f.hi > vocabulary_.longest_plain()) return false;
        return text_matters(scene, at.lexeme, entry);
    });
}

void Masks::add_plain(Machine& machine, const Configuration& at, Text& text, uint32_t* row) {
    bool literals = false;
    for (const Entry& entry : at.lexeme.entries) {
        if (entry.kind == Entry::LITERAL || entry.kind == Entry::NAME)
            literals = true;
        else
            add_plain_formed(formed(machine.program(), at.lexeme, entry), row);
    }
    if (!literals) return;
    start_walk(at);
    std::erase_if(path_[0].lexeme.entries,
                  [](const Entry& entry) { return entry.kind != Entry::LITERAL && entry.kind != Entry::NAME; });
    walk(machine, text, vocabulary_.plain());
    for (const uint32_t id : found_) row[id / 32] |= 1U << (id % 32);
}

void Masks::add_plain_formed(const Formed& f, uint32_t* row) {
    if (f.language.dfa.universal(f.state)) {
        const std::vector<uint32_t>& mask = vocabulary_.plain_mask(f.hi);
        for (size_t i = 0; i < mask.size(); ++i) row[i] |= mask[i];
        return;
    }
    Formed normal = f;
    normalize(f.language, f.state, vocabulary_.longest_plain(), normal.lo, normal.hi);
    Hash key;
    key.mix(f.language.id);
    key.mix(f.state);
    key.mix(uint64_t{normal.lo} << 32 | normal.hi);
    auto set = vocabulary_.plain_cache.find(key);
    if (!set) {
        walk_plain(normal);
        set = std::make_shared<const TokenSet>(found_, vocabulary_.words());
        vocabulary_.plain_cache.add(key, set);
    }
    set->add_to(row);
}

// Finds the plain tokens that an automaton takes. They consist of whole code points, so only these are looked at.
void Masks::walk_plain(const Formed& f) {
    const Trie& trie = vocabulary_.plain();
    const Dfa& dfa = f.language.dfa;
    found_.clear();
    if (levels_.empty()) levels_.resize(trie.max_depth + size_t{1});
    levels_[0] = {f.state, 0, 0, 0};
    for (uint32_t i = 0; i < trie.nodes();) {
        const Level& in = levels_[trie.depth[i]];
        Level& out = levels_[trie.depth[i] + size_t{1}];
        const uint8_t byte = trie.byte[i];
        if (in.missing > 0) {
            out = {in.state, in.code_points, in.value << 6 | (byte & 0x3FU), in.missing - 1};
        } else {
            const uint32_t missing = byte >= 0xF0 ? 3 : byte >= 0xE0 ? 2 : byte >= 0xC0 ? 1 : 0;
            out = {in.state, in.code_points, missing > 0 ? byte & (0x3FU >> missing) : byte, missing};
        }
        if (out.missing > 0) {
            ++i;
            continue;
        }
        ++out.code_points;
        out.state = dfa.step(in.state, out.value);
        const uint32_t lo = f.lo - std::min(f.lo, out.code_points);
        const uint32_t hi = f.hi == UNBOUNDED ? f.hi : f.hi - std::min(f.hi, out.code_points);
        if (out.code_points > f.hi || !f.language.reaches(out.state, lo, hi)) {
            i = trie.skip[i];
            continue;
        }
        // All that follows is free: no need to look at it.
        const bool all = dfa.universal(out.state) && hi >= vocabulary_.longest_plain();
        const uint32_t end = all ? trie.first[trie.skip[i]] : trie.own_end[i];
        found_.insert(found_.end(), trie.tokens.begin() + trie.first[i], trie.tokens.begin() + end);
        i = all ? trie.skip[i] : i + 1;
    }
}

void Masks::start_walk(const Configuration& at) {
    if (path_.empty()) path_.resize(vocabulary_.all().max_depth + size_t{1});
    path_[0] = at;
    found_.clear();
}

void Masks::add_cached(Machine& machine, const Configuration& at, Text& text, const Trie& trie, bool commas,
                       uint32_t* row) {
    Hash key = key_of(machine, at, text.view());
    key.mix(trie.nodes());
    if (const auto set = grammar_.cache.find(key)) {
        set->add_to(row);
        return;
    }
    start_walk(at);
    const uint32_t visited = walk(machine, text, trie, commas);
    for (const uint32_t id : found_) row[id / 32] |= 1U << (id % 32);
    if (visited >= WORTH_CACHING)
        grammar_.cache.add(key, std::make_shared<const TokenSet>(found_, vocabulary_.words()));
}

// Whether any plain text may follow that a token can hold.
bool Masks::takes_any_plain(const Machine& machine, const Configuration& at) const {
    if (at.mode != Configuration::STRING && at.mode != Configuration::IN_KEY) return false;
    if (at.lexeme.partial.stage != Partial::NONE) return false;
    return std::any_of(at.lexeme.entries.begin(), at.lexeme.entries.end(), [&](const Entry& entry) {
        if (entry.kind != Entry::TERM && entry.kind != Entry::KEY_CLASS) return false;
        const Formed f = formed(machine.program(), at.lexeme, entry);
        return f.language.dfa.universal(f.state) && f.hi > vocabulary_.all().max_depth;
    });
}

// From path_[0]; returns how many nodes were visited. commas: whether tokens that have one are looked at.
uint32_t Masks::walk(Machine& machine, Text& text, const Trie& trie, bool commas) {
    uint32_t visited = 0;
    const uint32_t nodes = trie.nodes();
    for (uint32_t i = 0; i < nodes; ++visited) {
        const size_t depth = trie.depth[i];
        if ((!commas && trie.byte[i] == ',') ||
            !machine.step(path_[depth], text.with(depth, trie.byte[i]), path_[depth + 1])) {
            i = trie.skip[i];
            continue;
        }
        const bool all = trie.plain_below[i] && takes_any_plain(machine, path_[depth + 1]);
        const uint32_t end = all ? trie.first[trie.skip[i]] : trie.own_end[i];
        found_.insert(found_.end(), trie.tokens.begin() + trie.first[i], trie.tokens.begin() + end);
        i = all ? trie.skip[i] : i + 1;
    }
    return visited;
}

// Equal for configurations after which the same tokens follow; nothing where that's not worth telling.
Hash Masks::key_of(const Machine& machine, const Configuration& at, std::string_view text) const {
    Hash key;
    key.mix(uint64_t{at.mode} | uint64_t{at.closing} << 8 | uint64_t{at.gap_allowed} << 9 |
            uint64_t{at.line_break} << 10 | uint64_t{at.half} << 11 | uint64_t{at.blanks} << 32);
    if (at.frame) {
        const Hash frames = at.frame->hash();
        key.mix(frames.a);
        key.mix(frames.b);
        key.mix(hash_of_tied(at, text));
    }
    if (at.mode == Configuration::FREE_TEXT || at.mode == Configuration::BEGIN_TEXT ||
        at.mode == Configuration::END_TEXT)
        key.mix(uint64_t{at.trigger} << 32 | at.depth);
    if (at.in_lexeme()) mix_lexeme(machine, at, text, key);
    return key;
}

void Masks::mix_lexeme(const Machine& machine, const Configuration& at, std::string_view text, Hash& key) const {
    const Lexeme& lexeme = at.lexeme;
    const Partial& partial = lexeme.partial;
    key.mix(uint64_t{partial.stage} | uint64_t{partial.missing} << 8 | uint64_t{partial.high} << 16 |
            uint64_t{partial.value} << 32);
    key.mix(partial.least);
    bool whole = false;
    for (const Entry& entry : lexeme.entries) {
        key.mix(uint64_t{entry.kind} | uint64_t{entry.tag} << 32);
        key.mix(uint64_t{entry.source} << 32 | entry.a);
        if (entry.kind == Entry::LITERAL || entry.kind == Entry::NAME) {
            key.mix(uint64_t{entry.b} << 32 | (text.size() - lexeme.start));
            continue;
        }
        if (entry.kind == Entry::TERM) {
            Formed f = formed(machine.program(), lexeme, entry);
            normalize(f.language, f.state, vocabulary_.all().max_depth, f.lo, f.hi);
            key.mix(uint64_t{f.lo} << 32 | f.hi);
        }
        whole = whole || (at.frame && text_matters({machine.program(), *at.frame, text}, lexeme, entry));
        // The key itself is taken for the next key.
        whole = whole || (entry.kind == Entry::KEY_CLASS && vocabulary_.spans_keys());
    }
    key.mix(whole ? std::hash<std::string_view>{}(text.substr(lexeme.start)) | 1 : 0);
}

}  // namespace forge::grammar
