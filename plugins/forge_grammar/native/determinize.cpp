// Subset construction with assertions; regular/determinize.py explains threads and what they must satisfy.
#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

#include "automaton.hpp"

namespace forge::grammar {
namespace {

enum Op { CHAR, SPLIT, MATCH, ALL, BEGIN, END, BOUNDARY, NO_BOUNDARY, LOOK };
enum Kind { NOTHING, WORD, OTHER };
constexpr int UNKNOWN = -1;
constexpr int32_t FAILED = -1;

using Pending = std::vector<std::pair<uint32_t, uint32_t>>;   // (automaton of a lookahead, its state), sorted
using Thread = std::pair<uint32_t, int32_t>;                  // (state of the NFA, number of a Pending)
using Threads = std::vector<Thread>;                          // sorted

using State = std::pair<Threads, int>;                        // (threads, what stands before)

struct StateHash {
    size_t operator()(const State& state) const {
        uint64_t hash = 1469598103934665603u ^ static_cast<uint64_t>(state.second);
        for (const auto& [pc, pending] : state.first)
            hash = (hash ^ (static_cast<uint64_t>(pc) << 20) ^ static_cast<uint64_t>(pending)) * 1099511628211u;
        return hash ^ hash >> 32;
    }
};

class Construction {
   public:
    Construction(const PreparedNfa& nfa, const Limits& limits)
        : nfa_(nfa), limits_(limits), seen_(nfa.rows.size()), targets_(nfa.classes) {
        for (const auto& row : nfa.rows)
            asks_word_ |= row[0] == BOUNDARY || row[0] == NO_BOUNDARY || row[0] == LOOK;
        intern({});
    }

    Dfa build(int before) {
        table_.bounds = nfa_.bounds;
        table_.range_class = nfa_.range_class;
        table_.classes = nfa_.classes;
        table_.start = number(enter({{nfa_.start, 0}}, before, UNKNOWN), before);
        for (size_t i = 0; i < order_.size(); ++i) {
            const auto& [threads, kind] = *order_[i];
            table_.accepting.push_back(accepts(threads, kind));
            add_row(threads, kind);
        }
        return canonical(table_);
    }

   private:
    void spend(uint64_t steps) {
        work_ += steps;
        limits_.check_work(work_);
    }

    int op(const Thread& thread) const { return nfa_.rows[thread.first][0]; }

    bool asserts(const Threads& threads) const {
        return std::any_of(threads.begin(), threads.end(), [&](const Thread& t) {
            return op(t) == END || op(t) == BOUNDARY || op(t) == NO_BOUNDARY;
        });
    }

    int32_t intern(Pending pending) {
        const auto [found, fresh] = pending_ids_.emplace(std::move(pending), static_cast<int32_t>(pendings_.size()));
        if (fresh) pendings_.push_back(&found->first);
        return found->second;
    }

    int32_t number(Threads threads, int before) {
        if (threads.empty()) return -1;
        if (!asserts(threads) || (before == WORD && !asks_word_)) before = OTHER;
        const auto [found, fresh] =
            ids_.emplace(State(std::move(threads), before), static_cast<int32_t>(order_.size()));
        if (fresh) {
            limits_.check_states(order_.size() + 1);
            order_.push_back(&found->first);
        }
        return found->second;
    }

    void add_row(const Threads& threads, int before) {
        spend(nfa_.classes);
        for (Threads& each : targets_) each.clear();
        if (asserts(threads)) {
            const Threads words = enter(threads, before, WORD), others = enter(threads, before, OTHER);
            move(words, WORD);
            move(others, OTHER);
        } else {
            move(threads, WORD);
            move(threads, OTHER);
        }
        // Classes that lead to the same threads are followed once.
        std::unordered_map<State, int32_t, StateHash> known;
        for (uint32_t c = 0; c < nfa_.classes; ++c) {
            Threads& each = targets_[c];
            int32_t target = -1;
            if (!each.empty()) {
                std::sort(each.begin(), each.end());
                each.erase(std::unique(each.begin(), each.end()), each.end());
                const auto [found, fresh] = known.emplace(State(each, asks_word_ ? nfa_.kind[c] : 0), -1);
                if (fresh) found->second = number(enter(each, nfa_.kind[c], UNKNOWN), nfa_.kind[c]);
                target = found->second;
            }
            table_.next.push_back(target);
        }
    }

    // One character of each class of a kind.
    void move(const Threads& threads, int kind) {
        for (const Thread& thread : threads) {
            const auto& row = nfa_.rows[thread.first];
            const auto take = [&](uint32_t c, uint32_t follow) {
                if (nfa_.kind[c] != kind) return;
                spend(1);
                const int32_t pending = advance(thread.second, c);
                if (pending != FAILED) targets_[c].emplace_back(follow, pending);
            };
            if (row[0] == ALL)
                for (uint32_t c : nfa_.members.back()) take(c, thread.first);
            else if (row[0] == CHAR)
                for (uint32_t c : nfa_.members[row[1]]) take(c, row[2]);
        }
    }

    // What lookaheads ask after one more character.
    int32_t advance(int32_t pending, uint32_t c) {
        if (!pending) return 0;
        Pending result;
        for (const auto& [look, state] : *pendings_[pending]) {
            const Dfa& dfa = *nfa_.looks[look];
            const uint32_t target = dfa.delta[static_cast<size_t>(state) * dfa.classes + nfa_.look_class[look][c]];
            if (target == Dfa::DEAD) return FAILED;
            if (!dfa.universal(target)) result.emplace_back(look, target);
        }
        return intern(normal(std::move(result)));
    }

    static Pending normal(Pending pending) {
        std::sort(pending.begin(), pending.end());
        pending.erase(std::unique(pending.begin(), pending.end()), pending.end());
        return pending;
    }

    int32_t ask(int32_t pending, uint32_t look) {
        const Dfa& dfa = *nfa_.looks[look];
        if (dfa.start == Dfa::DEAD) return FAILED;
        if (dfa.universal(dfa.start)) return pending;
        Pending result = *pendings_[pending];
        result.emplace_back(look, dfa.start);
        return intern(normal(std::move(result)));
    }

    // Follow all that needs no character. following: what comes next, where that is known (NOTHING: the end).
    Threads enter(Threads stack, int before, int following) {
        ++stamp_;
        uint64_t steps = 0;
        std::set<Thread> asking;
        Threads kept;
        while (!stack.empty()) {
            const Thread thread = stack.back();
            stack.pop_back();
            if (thread.second) {
                if (!asking.insert(thread).second) continue;
            } else {
                if (seen_[thread.first] == stamp_) continue;
                seen_[thread.first] = stamp_;
            }
            ++steps;
            const auto& [operation, argument, follow, other] = nfa_.rows[thread.first];
            const uint32_t next = follow;
            switch (operation) {
                case CHAR:
                case MATCH:
                case ALL: kept.push_back(thread); break;
                case SPLIT:
                    stack.emplace_back(next, thread.second);
                    stack.emplace_back(other, thread.second);
                    break;
                case BEGIN:
                    if (before == NOTHING) stack.emplace_back(next, thread.second);
                    break;
                case LOOK:
                    if (const int32_t asked = ask(thread.second, 3 * argument + before); asked != FAILED)
                        stack.emplace_back(next, asked);
                    break;
                default:
                    if (following == UNKNOWN)
                        kept.push_back(thread);
                    else if (holds(operation, before, following))
                        stack.emplace_back(next, thread.second);
            }
        }
        spend(steps);
        return reduce(std::move(kept));
    }

    static bool holds(int operation, int before, int following) {
        if (operation == END) return following == NOTHING;
        const bool boundary = (before == WORD) != (following == WORD);
        return boundary == (operation == BOUNDARY);
    }

    // Threads that accept no more than another are left out: those beside one that accepts all, and those that are
    // another with more to satisfy.
    Threads reduce(Threads threads) {
        std::sort(threads.begin(), threads.end());
        for (const Thread& thread : threads)
            if (op(thread) == ALL && !thread.second) return {thread};
        if (std::all_of(threads.begin(), threads.end(), [](const Thread& t) { return !t.second; })) return threads;
        Threads kept;
        for (auto first = threads.begin(); first != threads.end();) {
            const auto last = std::find_if(first, threads.end(), [&](const Thread& t) { return t.first != first->first; });
            for (auto each = first; each != last; ++each) {
                spend(static_cast<uint64_t>(last - first));
                if (std::none_of(first, last, [&](const Thread& t) { return less(t.second, each->second); }))
                    kept.push_back(*each);
            }
            first = last;
        }
        return kept;
    }

    // Whether a asks strictly less than b.
    bool less(int32_t a, int32_t b) const {
        const Pending &fewer = *pendings_[a], &more = *pendings_[b];
        return fewer.size() < more.size() && std::includes(more.begin(), more.end(), fewer.begin(), fewer.end());
    }

    bool accepts(const Threads& threads, int before) {
        const auto end = asserts(threads) ? enter(threads, before, NOTHING) : threads;
        return std::any_of(end.begin(), end.end(), [&](const Thread& thread) {
            const Pending& pending = *pendings_[thread.second];
            return (op(thread) == MATCH || op(thread) == ALL) &&
                   std::all_of(pending.begin(), pending.end(),
                               [&](const auto& each) { return nfa_.looks[each.first]->accepting[each.second]; });
        });
    }

    const PreparedNfa& nfa_;
    const Limits limits_;
    bool asks_word_ = false;
    uint64_t work_ = 0;
    Table table_;
    std::map<Pending, int32_t> pending_ids_;
    std::vector<const Pending*> pendings_;
    std::unordered_map<State, int32_t, StateHash> ids_;
    std::vector<const State*> order_;
    uint64_t stamp_ = 0;
    std::vector<uint64_t> seen_;        // per state of the NFA with nothing pending, when it was last entered
    std::vector<Threads> targets_;      // per class
};

}  // namespace

Dfa determinize(const PreparedNfa& nfa, int before, const Limits& limits) {
    return Construction(nfa, limits).build(before);
}

}  // namespace forge::grammar
