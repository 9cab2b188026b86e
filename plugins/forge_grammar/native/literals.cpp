// Finite languages (Daciuk et al., Incremental construction of minimal acyclic finite-state automata, 2000).
#include <algorithm>
#include <map>

#include "automaton.hpp"

namespace forge::grammar {
namespace {

using Edges = std::vector<std::pair<char32_t, uint32_t>>;
using Node = std::pair<bool, Edges>;

class Builder {
   public:
    explicit Builder(const Limits& limits) : limits_(limits) {}

    void add(const std::u32string& word) {
        size_t common = 0;
        while (common < previous_.size() && common < word.size() && previous_[common] == word[common]) ++common;
        close(common);
        path_.resize(word.size() + 1);
        path_.back().first = true;
        previous_ = word;
    }

    // All nodes, the start last.
    std::vector<Node> finish() {
        close(0);
        nodes_.push_back(path_[0]);
        return std::move(nodes_);
    }

   private:
    void close(size_t depth) {
        while (path_.size() > depth + 1) {
            Node node = std::move(path_.back());
            path_.pop_back();
            const auto [found, fresh] = register_.emplace(node, static_cast<uint32_t>(nodes_.size()));
            if (fresh) {
                limits_.check_states(nodes_.size() + 1);
                nodes_.push_back(std::move(node));
            }
            path_.back().second.emplace_back(previous_[path_.size() - 1], found->second);
        }
    }

    const Limits& limits_;
    std::map<Node, uint32_t> register_;
    std::vector<Node> nodes_, path_{1};
    std::u32string previous_;
};

}  // namespace

Dfa literals(const std::vector<std::u32string>& texts, const Limits& limits) {
    const auto surrogate = [](char32_t cp) { return cp >= 0xD800 && cp <= 0xDFFF; };
    Builder builder(limits);
    std::vector<char32_t> chars;
    bool any = false;
    for (const std::u32string& text : texts) {
        if (std::any_of(text.begin(), text.end(), surrogate)) continue;
        builder.add(text);
        chars.insert(chars.end(), text.begin(), text.end());
        any = true;
    }
    Table table;
    table.bounds = {0};
    table.range_class = {0};
    table.classes = 1;
    if (!any) return canonical(table);
    std::sort(chars.begin(), chars.end());
    chars.erase(std::unique(chars.begin(), chars.end()), chars.end());
    std::map<char32_t, uint32_t> column;
    for (char32_t cp : chars) {
        column[cp] = table.classes;
        if (cp == table.bounds.back()) {
            table.range_class.back() = table.classes;
        } else {
            table.bounds.push_back(cp);
            table.range_class.push_back(table.classes);
        }
        ++table.classes;
        if (cp + 1 < Dfa::CODE_POINTS) {
            table.bounds.push_back(cp + 1);
            table.range_class.push_back(0);
        }
    }
    const std::vector<Node> nodes = builder.finish();
    limits.check_work(static_cast<uint64_t>(nodes.size()) * table.classes);
    table.start = static_cast<int32_t>(nodes.size()) - 1;
    table.next.assign(nodes.size() * table.classes, -1);
    for (size_t i = 0; i < nodes.size(); ++i) {
        table.accepting.push_back(nodes[i].first);
        for (const auto& [cp, target] : nodes[i].second)
            table.next[i * table.classes + column[cp]] = static_cast<int32_t>(target);
    }
    return canonical(table);
}

}  // namespace forge::grammar
