// Minimisation of partial deterministic automata (Valmari and Lehtinen, Efficient minimization of DFAs with partial
// transition functions, 2008): time m log m of m transitions, however deep the automaton.
#include <algorithm>
#include <numeric>

#include "automaton.hpp"

namespace forge::grammar {
namespace {

// A partition of 0..n-1 into sets, refined by marking elements and splitting off the marked ones of each set.
struct Partition {
    std::vector<uint32_t> elements, location, set_of, first, past, marked, touched;

    explicit Partition(uint32_t n) : elements(n), location(n), set_of(n) {
        std::iota(elements.begin(), elements.end(), 0);
        std::iota(location.begin(), location.end(), 0);
    }

    void add_set(uint32_t from, uint32_t to) {
        first.push_back(from);
        past.push_back(to);
        marked.push_back(0);
    }

    uint32_t sets() const { return static_cast<uint32_t>(first.size()); }

    void mark(uint32_t element) {
        const uint32_t block = set_of[element], at = location[element], to = first[block] + marked[block];
        if (at < to) return;
        const uint32_t other = elements[to];
        elements[at] = other;
        location[other] = at;
        elements[to] = element;
        location[element] = to;
        if (!marked[block]++) touched.push_back(block);
    }

    void split() {
        for (uint32_t block : touched) {
            const uint32_t middle = first[block] + marked[block], fresh = sets();
            if (middle != past[block]) {
                // The smaller part becomes the new set: that's what bounds the work.
                if (2 * marked[block] <= past[block] - first[block]) {
                    add_set(first[block], middle);
                    first[block] = middle;
                } else {
                    add_set(middle, past[block]);
                    past[block] = middle;
                }
                for (uint32_t i = first[fresh]; i < past[fresh]; ++i) set_of[elements[i]] = fresh;
            }
            marked[block] = 0;
        }
        touched.clear();
    }
};

// Transitions with one label in one set.
Partition by_label(const std::vector<Transition>& transitions) {
    Partition cords(static_cast<uint32_t>(transitions.size()));
    std::stable_sort(cords.elements.begin(), cords.elements.end(),
                     [&](uint32_t a, uint32_t b) { return transitions[a].label < transitions[b].label; });
    for (uint32_t at = 0; at < cords.elements.size(); ++at) {
        const uint32_t transition = cords.elements[at];
        cords.location[transition] = at;
        if (!at || transitions[transition].label != transitions[cords.elements[at - 1]].label) cords.add_set(at, at);
        cords.set_of[transition] = cords.sets() - 1;
        cords.past.back() = at + 1;
    }
    return cords;
}

}  // namespace

std::vector<uint32_t> minimal_blocks(uint32_t states, const std::vector<Transition>& transitions,
                                     const std::vector<uint8_t>& final) {
    Partition blocks(states);
    blocks.add_set(0, states);
    for (uint32_t state = 0; state < states; ++state)
        if (final[state]) blocks.mark(state);
    blocks.split();
    Partition cords = by_label(transitions);
    std::vector<uint32_t> offset(states + 1), into(transitions.size());
    for (const Transition& each : transitions) ++offset[each.head + 1];
    std::partial_sum(offset.begin(), offset.end(), offset.begin());
    std::vector<uint32_t> fill(offset.begin(), offset.end() - 1);
    for (uint32_t i = 0; i < transitions.size(); ++i) into[fill[transitions[i].head]++] = i;
    for (uint32_t block = 1, cord = 0; cord < cords.sets(); ++cord) {
        for (uint32_t i = cords.first[cord]; i < cords.past[cord]; ++i) blocks.mark(transitions[cords.elements[i]].tail);
        blocks.split();
        for (; block < blocks.sets(); ++block) {
            for (uint32_t i = blocks.first[block]; i < blocks.past[block]; ++i)
                for (uint32_t j = offset[blocks.elements[i]]; j < offset[blocks.elements[i] + 1]; ++j) cords.mark(into[j]);
            cords.split();
        }
    }
    return std::move(blocks.set_of);
}

}  // namespace forge::grammar
