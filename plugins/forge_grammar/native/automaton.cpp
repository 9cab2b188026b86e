#include "automaton.hpp"

#include <algorithm>
#include <map>
#include <unordered_map>

namespace forge::grammar {
namespace {

constexpr uint32_t NOWHERE = 0xFFFFFFFF;

std::vector<uint8_t> coreachable(const Table& table) {
    const uint32_t states = table.states();
    std::vector<uint32_t> offset(states + 1);
    for (int32_t target : table.next)
        if (target >= 0) ++offset[target + 1];
    for (uint32_t state = 0; state < states; ++state) offset[state + 1] += offset[state];
    std::vector<uint32_t> source(offset.back()), fill(offset.begin(), offset.end() - 1);
    for (size_t i = 0; i < table.next.size(); ++i)
        if (table.next[i] >= 0) source[fill[table.next[i]]++] = static_cast<uint32_t>(i / table.classes);
    std::vector<uint8_t> live(states);
    std::vector<uint32_t> pending;
    for (uint32_t state = 0; state < states; ++state)
        if (table.accepting[state]) {
            live[state] = 1;
            pending.push_back(state);
        }
    while (!pending.empty()) {
        const uint32_t state = pending.back();
        pending.pop_back();
        for (uint32_t i = offset[state]; i < offset[state + 1]; ++i)
            if (!live[source[i]]) {
                live[source[i]] = 1;
                pending.push_back(source[i]);
            }
    }
    return live;
}

// The states that matter, breadth-first.
std::vector<uint32_t> reachable(const Table& table, const std::vector<uint8_t>& live, std::vector<uint32_t>& index) {
    std::vector<uint32_t> order{static_cast<uint32_t>(table.start)};
    index[table.start] = 0;
    for (size_t i = 0; i < order.size(); ++i)
        for (uint32_t c = 0; c < table.classes; ++c) {
            const int32_t target = table.next[static_cast<size_t>(order[i]) * table.classes + c];
            if (target < 0 || !live[target] || index[target] != NOWHERE) continue;
            index[target] = static_cast<uint32_t>(order.size());
            order.push_back(target);
        }
    return order;
}

// A minimal automaton whose states and classes aren't numbered yet.
struct Quotient {
    uint32_t states, classes, start;
    std::vector<uint32_t> next;     // [states * classes], NOWHERE
    std::vector<uint8_t> accepting;
};

// The first class of each set of classes with equal columns, and the new number of each old class.
std::vector<uint32_t> merge_classes(const Quotient& quotient, Dfa& dfa, const Table& table) {
    const auto column_at = [&](uint32_t state, uint32_t c) {
        return quotient.next[static_cast<size_t>(state) * quotient.classes + c];
    };
    std::vector<uint32_t> number(quotient.classes, NOWHERE), first;
    std::unordered_multimap<uint64_t, uint32_t> seen;
    dfa.bounds.clear();
    dfa.range_class.clear();
    for (size_t range = 0; range < table.bounds.size(); ++range) {
        const uint32_t old = table.range_class[range];
        if (number[old] == NOWHERE) {
            uint64_t hash = 1469598103934665603u;
            for (uint32_t state = 0; state < quotient.states; ++state)
                hash = (hash ^ column_at(state, old)) * 1099511628211u;
            for (auto [it, end] = seen.equal_range(hash); it != end && number[old] == NOWHERE; ++it) {
                uint32_t state = 0;
                while (state < quotient.states && column_at(state, old) == column_at(state, first[it->second])) ++state;
                if (state == quotient.states) number[old] = it->second;
            }
            if (number[old] == NOWHERE) {
                number[old] = static_cast<uint32_t>(first.size());
                seen.emplace(hash, number[old]);
                first.push_back(old);
                if (first.size() > MAX_CLASSES) throw LimitExceeded("classes of code points", MAX_CLASSES);
            }
        }
        if (dfa.range_class.empty() || dfa.range_class.back() != number[old]) {
            dfa.bounds.push_back(table.bounds[range]);
            dfa.range_class.push_back(static_cast<uint16_t>(number[old]));
        }
    }
    return first;
}

Dfa numbered(const Quotient& quotient, const Table& table) {
    Dfa dfa;
    const std::vector<uint32_t> first = merge_classes(quotient, dfa, table);
    dfa.start = 0;
    dfa.states = quotient.states;
    dfa.classes = static_cast<uint32_t>(first.size());
    std::vector<uint32_t> ids(quotient.states, NOWHERE), order{quotient.start};
    ids[quotient.start] = 0;
    for (size_t i = 0; i < order.size(); ++i) {
        dfa.accepting.push_back(quotient.accepting[order[i]]);
        for (uint32_t old : first) {
            const uint32_t target = quotient.next[static_cast<size_t>(order[i]) * quotient.classes + old];
            if (target != NOWHERE && ids[target] == NOWHERE) {
                ids[target] = static_cast<uint32_t>(order.size());
                order.push_back(target);
            }
            dfa.delta.push_back(target == NOWHERE ? Dfa::DEAD : ids[target]);
        }
    }
    dfa.finish();
    return dfa;
}

Dfa empty() {
    Dfa dfa;
    dfa.finish();
    return dfa;
}

}  // namespace

Dfa canonical(const Table& table) {
    const std::vector<uint8_t> live = coreachable(table);
    if (table.start < 0 || !live[table.start]) return empty();
    std::vector<uint32_t> index(table.states(), NOWHERE);
    const std::vector<uint32_t> order = reachable(table, live, index);
    std::vector<Transition> transitions;
    std::vector<uint8_t> final;
    for (uint32_t i = 0; i < order.size(); ++i) {
        final.push_back(table.accepting[order[i]]);
        for (uint32_t c = 0; c < table.classes; ++c) {
            const int32_t target = table.next[static_cast<size_t>(order[i]) * table.classes + c];
            if (target >= 0 && live[target]) transitions.push_back({i, c, index[target]});
        }
    }
    const auto block = minimal_blocks(static_cast<uint32_t>(order.size()), transitions, final);
    const uint32_t blocks = *std::max_element(block.begin(), block.end()) + 1;
    Quotient quotient{blocks, table.classes, block[0], {}, std::vector<uint8_t>(blocks)};
    quotient.next.assign(static_cast<size_t>(blocks) * table.classes, NOWHERE);
    for (const Transition& each : transitions)
        quotient.next[static_cast<size_t>(block[each.tail]) * table.classes + each.label] = block[each.head];
    for (uint32_t i = 0; i < order.size(); ++i) quotient.accepting[block[i]] = final[i];
    return numbered(quotient, table);
}

Dfa everything() {
    Dfa dfa;
    dfa.start = 0;
    dfa.states = 1;
    dfa.classes = 2;
    dfa.bounds = {0, 0xD800, 0xE000};
    dfa.range_class = {0, 1, 0};
    dfa.delta = {0, Dfa::DEAD};
    dfa.accepting = {1};
    dfa.finish();
    return dfa;
}

Dfa product(const Dfa& a, const Dfa& b, char operation, const Limits& limits) {
    Table table;
    std::map<std::pair<uint32_t, uint32_t>, uint32_t> numbers;
    std::vector<std::pair<uint32_t, uint32_t>> pairs;
    uint32_t at = 0;
    for (size_t i = 0, j = 0; at != Dfa::CODE_POINTS;) {
        const std::pair<uint32_t, uint32_t> pair{a.range_class[i], b.range_class[j]};
        const auto [found, fresh] = numbers.emplace(pair, static_cast<uint32_t>(pairs.size()));
        if (fresh) pairs.push_back(pair);
        if (table.range_class.empty() || table.range_class.back() != found->second) {
            table.bounds.push_back(at);
            table.range_class.push_back(found->second);
        }
        const uint32_t end_a = a.range_end(i), end_b = b.range_end(j);
        at = std::min(end_a, end_b);
        i += end_a == at;
        j += end_b == at;
    }
    table.classes = static_cast<uint32_t>(pairs.size());

    const bool both = operation == '&', either = operation == '|';
    std::unordered_map<uint64_t, uint32_t> ids;
    std::vector<std::pair<uint32_t, uint32_t>> order;
    const auto number = [&](uint32_t p, uint32_t q) -> int32_t {
        const bool live_p = p != Dfa::DEAD, live_q = q != Dfa::DEAD;
        if (both ? !live_p || !live_q : either ? !live_p && !live_q : !live_p) return -1;
        const auto [found, fresh] =
            ids.emplace(static_cast<uint64_t>(p) << 32 | q, static_cast<uint32_t>(order.size()));
        if (fresh) {
            limits.check_states(order.size() + 1);
            order.emplace_back(p, q);
        }
        return static_cast<int32_t>(found->second);
    };
    table.start = number(a.start, b.start);
    uint64_t work = 0;
    for (size_t i = 0; i < order.size(); ++i) {
        work += pairs.size();
        limits.check_work(work);
        const auto [p, q] = order[i];
        for (const auto& [class_a, class_b] : pairs)
            table.next.push_back(
                number(p == Dfa::DEAD ? p : a.delta[static_cast<size_t>(p) * a.classes + class_a],
                       q == Dfa::DEAD ? q : b.delta[static_cast<size_t>(q) * b.classes + class_b]));
        const bool in_a = p != Dfa::DEAD && a.accepting[p], in_b = q != Dfa::DEAD && b.accepting[q];
        table.accepting.push_back(both ? in_a && in_b : either ? in_a || in_b : in_a && !in_b);
    }
    return canonical(table);
}

}  // namespace forge::grammar
