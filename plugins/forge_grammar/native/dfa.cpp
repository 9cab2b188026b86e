#include "dfa.hpp"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <unordered_map>

namespace forge::grammar {
namespace {

constexpr char MAGIC[4] = {'F', 'D', 'A', '1'};
constexpr uint64_t MAX_LENGTH_TABLE = 64u << 20;
constexpr size_t HEADER = 20;

using Bits = std::vector<uint64_t>;

size_t padded(size_t size) { return (size + 3) / 4 * 4; }

template <typename T>
std::vector<T> read(std::span<const uint8_t> data, size_t at, size_t count) {
    std::vector<T> values(count);
    if (count) std::memcpy(values.data(), data.data() + at, count * sizeof(T));
    return values;
}

template <typename T>
void write(std::vector<uint8_t>& data, const std::vector<T>& values) {
    const size_t at = data.size(), size = values.size() * sizeof(T);
    data.resize(at + padded(size));
    if (size) std::memcpy(data.data() + at, values.data(), size);
}

bool bit(const Bits& bits, uint32_t i) { return bits[i / 64] >> (i % 64) & 1; }
void set(Bits& bits, uint32_t i) { bits[i / 64] |= uint64_t{1} << (i % 64); }

// The states one code point before each state, without repetition, as one array with offsets.
struct Sources {
    std::vector<uint32_t> first, source;

    explicit Sources(const Dfa& dfa) : first(dfa.states + 1) {
        std::vector<uint32_t> last(dfa.states, Dfa::DEAD);
        const auto each = [&](auto visit) {
            std::fill(last.begin(), last.end(), Dfa::DEAD);
            for (uint32_t state = 0; state < dfa.states; ++state)
                for (uint32_t c = 0; c < dfa.classes; ++c) {
                    const uint32_t target = dfa.delta[static_cast<size_t>(state) * dfa.classes + c];
                    if (target == Dfa::DEAD || last[target] == state) continue;
                    last[target] = state;
                    visit(state, target);
                }
        };
        each([&](uint32_t, uint32_t target) { ++first[target + 1]; });
        for (uint32_t state = 0; state < dfa.states; ++state) first[state + 1] += first[state];
        source.resize(first.back());
        std::vector<uint32_t> at(first.begin(), first.end() - 1);
        each([&](uint32_t state, uint32_t target) { source[at[target]++] = state; });
    }

    std::span<const uint32_t> operator[](uint32_t state) const {
        return std::span(source).subspan(first[state], first[state + 1] - first[state]);
    }
};

// The sets of states that are k steps before a set of ends, for ascending k until they repeat.
class Steps {
   public:
    Steps(Bits ends, const Sources& sources) : sources_(sources) { sets_.push_back(std::move(ends)); }

    bool has(uint32_t state, uint32_t steps) {
        while (!period_ && steps >= sets_.size()) extend();
        if (steps >= sets_.size()) steps = loop_ + (steps - loop_) % period_;
        return bit(sets_[steps], state);
    }

   private:
    void extend() {
        if (sets_.size() * (sources_.first.size() / 8 + 1) >= MAX_LENGTH_TABLE)
            throw LimitExceeded("bytes of the table of lengths of a language", MAX_LENGTH_TABLE);
        const Bits& last = sets_.back();
        Bits before(last.size());
        for (size_t i = 0; i < last.size(); ++i)
            for (uint64_t rest = last[i]; rest; rest &= rest - 1)
                for (uint32_t source : sources_[static_cast<uint32_t>(i * 64 + __builtin_ctzll(rest))]) set(before, source);
        uint64_t hash = 1469598103934665603u;
        for (uint64_t word : before) hash = (hash ^ word) * 1099511628211u;
        for (auto [it, end] = seen_.equal_range(hash); it != end; ++it)
            if (sets_[it->second] == before) {
                loop_ = it->second;
                period_ = static_cast<uint32_t>(sets_.size()) - loop_;
                return;
            }
        seen_.emplace(hash, static_cast<uint32_t>(sets_.size()));
        sets_.push_back(std::move(before));
    }

    const Sources& sources_;
    std::vector<Bits> sets_;
    std::unordered_multimap<uint64_t, uint32_t> seen_;
    uint32_t loop_ = 0, period_ = 0;
};

}  // namespace

// Tables of `reaches`, by high - low; made when first asked for.
struct Dfa::Lengths {
    std::mutex mutex;
    std::unique_ptr<Sources> sources;
    std::map<uint32_t, Steps> by_width;
};

LimitExceeded::LimitExceeded(std::string of, uint64_t most)
    : std::runtime_error("more than " + std::to_string(most) + " " + of), name(std::move(of)), limit(most) {}

Dfa Dfa::from_bytes(std::span<const uint8_t> data) {
    if (data.size() < HEADER) throw std::invalid_argument("an automaton of too few bytes");
    const auto header = read<uint32_t>(data, 4, 4);
    const uint64_t states = header[0], classes = header[1], ranges = header[2];
    // No factor is larger than the bytes there are, so nothing below overflows.
    if (std::memcmp(data.data(), MAGIC, 4) || !ranges || !classes || states > data.size() || classes > 0x10000 ||
        ranges > data.size() ||
        HEADER + 4 * ranges + padded(2 * ranges) + 4 * states * classes + padded(states) != data.size())
        throw std::invalid_argument("bytes that aren't an automaton");
    Dfa dfa;
    dfa.states = header[0];
    dfa.classes = header[1];
    dfa.start = header[3];
    size_t at = HEADER;
    dfa.bounds = read<uint32_t>(data, at, ranges);
    dfa.range_class = read<uint16_t>(data, at += 4 * ranges, ranges);
    dfa.delta = read<uint32_t>(data, at += padded(2 * ranges), states * classes);
    dfa.accepting = read<uint8_t>(data, at += 4 * states * classes, states);
    dfa.check();
    dfa.finish();
    return dfa;
}

void Dfa::check() const {
    if (start != (states ? 0 : DEAD)) throw std::invalid_argument("an automaton with a wrong start");
    const bool ascending = std::is_sorted(bounds.begin(), bounds.end(), std::less_equal<>());
    if (bounds[0] || !ascending || bounds.back() >= CODE_POINTS)
        throw std::invalid_argument("an automaton whose ranges aren't ascending");
    const auto outside = [&](uint32_t target) { return target != DEAD && target >= states; };
    if (*std::max_element(range_class.begin(), range_class.end()) >= classes ||
        std::any_of(delta.begin(), delta.end(), outside))
        throw std::invalid_argument("an automaton with a class or state out of range");
}

std::vector<uint8_t> Dfa::to_bytes() const {
    std::vector<uint8_t> data(MAGIC, MAGIC + 4);
    write(data, std::vector<uint32_t>{states, classes, static_cast<uint32_t>(bounds.size()), start});
    write(data, bounds);
    write(data, range_class);
    write(data, delta);
    write(data, accepting);
    return data;
}

void Dfa::finish() {
    for (uint32_t cp = 0; cp < 128; ++cp) ascii_[cp] = range_class[range_of(cp)];
    universal_ = find_universal();
    lengths_ = std::make_shared<Lengths>();
    measure();
}

size_t Dfa::range_of(uint32_t cp) const {
    return static_cast<size_t>(std::upper_bound(bounds.begin(), bounds.end(), cp) - bounds.begin()) - 1;
}

bool Dfa::live_in(uint32_t state, uint32_t first, uint32_t last) const {
    if (state == DEAD) return false;
    const uint32_t* row = &delta[static_cast<size_t>(state) * classes];
    for (size_t range = range_of(first); range < bounds.size() && bounds[range] <= last; ++range)
        if (row[range_class[range]] != DEAD) return true;
    return false;
}

uint32_t Dfa::find_universal() const {
    for (uint32_t state = 0; state < states; ++state) {
        bool all = accepting[state];
        for (size_t range = 0; all && range < bounds.size(); ++range)
            all = delta[static_cast<size_t>(state) * classes + range_class[range]] == state ||
                  (bounds[range] >= 0xD800 && range_end(range) <= 0xE000);
        if (all) return state;
    }
    return DEAD;
}

// counts_, shortest_, longest_: backwards from the states that no word leaves, then from the accepting ones.
void Dfa::measure() {
    counts_.assign(states, INFINITE);
    longest_.assign(states, UNBOUNDED);
    shortest_.assign(states, UNBOUNDED);
    const Sources sources(*this);
    std::vector<uint32_t> pending(states), order;
    for (uint32_t source : sources.source) ++pending[source];
    for (uint32_t state = 0; state < states; ++state)
        if (!pending[state]) order.push_back(state);
    std::vector<uint64_t> sizes(classes);
    for (size_t range = 0; range < bounds.size(); ++range) sizes[range_class[range]] += range_end(range) - bounds[range];
    for (size_t i = 0; i < order.size(); ++i) {
        const uint32_t state = order[i];
        uint64_t count = accepting[state];
        uint32_t longest = 0;
        for (uint32_t c = 0; c < classes; ++c) {
            const uint32_t target = delta[static_cast<size_t>(state) * classes + c];
            if (target == DEAD) continue;
            count = std::min<uint64_t>(INFINITE, count + sizes[c] * counts_[target]);
            longest = std::max(longest, longest_[target] + 1);
        }
        counts_[state] = static_cast<uint32_t>(count);
        longest_[state] = longest;
        for (uint32_t source : sources[state])
            if (!--pending[source]) order.push_back(source);
    }
    order.clear();
    for (uint32_t state = 0; state < states; ++state)
        if (accepting[state]) {
            shortest_[state] = 0;
            order.push_back(state);
        }
    for (size_t i = 0; i < order.size(); ++i)
        for (uint32_t source : sources[order[i]])
            if (shortest_[source] == UNBOUNDED) {
                shortest_[source] = shortest_[order[i]] + 1;
                order.push_back(source);
            }
}

bool Dfa::reaches(uint32_t state, uint32_t low, uint32_t high) const {
    if (state == DEAD || low > high || longest_[state] < low) return false;
    // The shortest word of at least `low` repeats no state beyond that length, so it's less than `states` longer.
    if (high == UNBOUNDED || high - low >= states - 1) return true;
    if (shortest_[state] >= low) return shortest_[state] <= high;
    const uint32_t width = high - low;
    std::lock_guard lock(lengths_->mutex);
    auto found = lengths_->by_width.find(width);
    if (found == lengths_->by_width.end()) {
        if (!lengths_->sources) lengths_->sources = std::make_unique<Sources>(*this);
        Bits ends((states + 63) / 64);
        for (uint32_t s = 0; s < states; ++s)
            if (shortest_[s] <= width) set(ends, s);
        found = lengths_->by_width.emplace(width, Steps(std::move(ends), *lengths_->sources)).first;
    }
    return found->second.has(state, low);
}

bool Dfa::accepts(std::u32string_view text) const {
    uint32_t state = start;
    for (char32_t cp : text) {
        if (state == DEAD || cp >= CODE_POINTS) return false;
        state = step(state, cp);
    }
    return state != DEAD && accepting[state];
}

std::optional<std::vector<std::u32string>> Dfa::words(uint32_t limit) const {
    std::vector<std::u32string> found;
    if (start == DEAD) return found;
    if (words_from(start) > limit || words_from(start) == INFINITE) return std::nullopt;
    std::vector<std::pair<std::u32string, uint32_t>> stack{{U"", start}};
    while (!stack.empty()) {
        const auto [text, state] = std::move(stack.back());
        stack.pop_back();
        if (accepting[state]) found.push_back(text);
        for (size_t range = bounds.size(); range-- > 0;) {
            const uint32_t target = delta[static_cast<size_t>(state) * classes + range_class[range]];
            if (target == DEAD) continue;
            for (uint32_t cp = range_end(range); cp-- > bounds[range];)
                stack.emplace_back(text + static_cast<char32_t>(cp), target);
        }
    }
    return found;
}

}  // namespace forge::grammar
