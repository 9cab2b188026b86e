// Reads and checks a program.
#include "program.hpp"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "canonical.hpp"
#include "vocabulary.hpp"

namespace forge::grammar {
namespace {

constexpr int32_t VERSION = 2;

[[noreturn]] void malformed(const std::string& what) { throw std::invalid_argument("malformed grammar: " + what); }

// Reads words in order; every read is checked.
class Reader {
public:
    Reader(const Program& program, size_t at) : program_(program), at_(at) {}

    int32_t next() {
        if (at_ >= program_.words.size()) malformed("it ends early");
        return program_.words[at_++];
    }
    int32_t in_range(const char* what, int64_t low, int64_t high) {
        const int32_t x = next();
        if (x < low || x >= high) malformed(std::string(what) + " " + std::to_string(x) + " is out of range");
        return x;
    }
    uint32_t id(const char* what, size_t count) {
        return static_cast<uint32_t>(in_range(what, 0, static_cast<int64_t>(count)));
    }
    uint32_t count(const char* what) { return id(what, program_.words.size() + 1); }
    uint32_t count_of_values() { return static_cast<uint32_t>(in_range("a number of values", 0, int64_t{1} << 31)); }
    uint32_t least() { return static_cast<uint32_t>(in_range("a minimum", 0, int64_t{1} << 31)); }
    uint32_t most() {
        const int32_t x = in_range("a maximum", -1, int64_t{1} << 31);
        return x < 0 ? UNBOUNDED : static_cast<uint32_t>(x);
    }
    std::span<const int32_t> ids(const char* what, size_t n, int64_t low, size_t count) {
        const size_t begin = at_;
        for (size_t i = 0; i < n; ++i) in_range(what, low, static_cast<int64_t>(count));
        return std::span(program_.words).subspan(begin, n);
    }
    std::span<const int32_t> counted(const char* what, size_t count) {
        const uint32_t n = this->count(what);
        return ids(what, n, 0, count);
    }
    size_t at() const { return at_; }

private:
    const Program& program_;
    size_t at_;
};

void require_sorted(const Program& program, std::span<const int32_t> texts, const char* what) {
    for (size_t i = 1; i < texts.size(); ++i)
        if (program.text(texts[i - 1]) >= program.text(texts[i])) malformed(std::string(what) + " aren't sorted");
}

// The shapes and types that a header announces, for the checks of ids before they are read.
struct Sizes {
    size_t types, arrays, objects;
};

void read_type(Program& program, Reader in, const Sizes& sizes) {
    Type type;
    type.literals = in.counted("a literal", program.texts.size());
    require_sorted(program, type.literals, "literals");
    for (const int32_t id : type.literals)
        if (program.text(id).empty()) malformed("an empty literal");
    type.first_term = static_cast<uint32_t>(program.terms.size());
    const uint32_t terms = in.count("a number of string terms");
    for (uint32_t i = 0; i < terms; ++i) {
        Term term{};
        term.language = in.id("a language", program.languages.size());
        term.min = in.least();
        term.max = in.most();
        term.excluded = in.counted("an excluded text", program.texts.size());
        require_sorted(program, term.excluded, "excluded texts");
        // Lengths that the automaton can't tell without too much work are refused here, not while matching.
        const Language& language = program.language(term.language);
        language.reaches(language.dfa.start, term.min, term.max);
        program.terms.push_back(term);
    }
    type.last_term = static_cast<uint32_t>(program.terms.size());
    type.numbers = in.counted("a language", program.languages.size());
    type.arrays = in.counted("an array shape", sizes.arrays);
    type.objects = in.counted("an object shape", sizes.objects);
    type.values = in.count_of_values();
    program.types.push_back(type);
}

// The index from which on an array's state is the same for all indices.
uint32_t saturation_of(const ArrayShape& shape) {
    if (shape.ceiling != UNBOUNDED) return UNBOUNDED;
    return std::max(shape.min, static_cast<uint32_t>(shape.prefix.size()));
}

void read_array(Program& program, Reader in, const Sizes& sizes) {
    ArrayShape shape{};
    shape.min = in.least();
    shape.max = in.most();
    shape.unique = in.in_range("a flag", 0, 2) != 0;
    const uint32_t prefix = in.count("a number of items");
    shape.prefix = in.ids("an item type", prefix, -1, sizes.types);
    shape.rest = in.in_range("an item type", -1, static_cast<int64_t>(sizes.types));
    const uint32_t contains = in.count("a number of contains");
    for (uint32_t i = 0; i < contains; ++i) {
        Contains one{};
        one.min = in.least();
        one.max = in.most();
        one.both = in.ids("an item type", size_t{prefix} + 1, -1, sizes.types);
        one.neither = in.ids("an item type", size_t{prefix} + 1, -1, sizes.types);
        shape.contains.push_back(one);
    }
    shape.ceiling = shape.max;
    const auto none = std::find(shape.prefix.begin(), shape.prefix.end(), -1);
    if (none != shape.prefix.end())
        shape.ceiling = std::min(shape.ceiling, static_cast<uint32_t>(none - shape.prefix.begin()));
    else if (shape.rest < 0)
        shape.ceiling = std::min(shape.ceiling, prefix);
    shape.saturation = saturation_of(shape);
    program.arrays.push_back(std::move(shape));
}

void index_object(const Program& program, ObjectShape& shape) {
    const uint32_t n = shape.size();
    shape.rank.assign(n, UNBOUNDED);
    for (uint32_t i = 0; i < n; ++i) {
        uint32_t& rank = shape.rank[static_cast<size_t>(shape.by_name[i])];
        if (rank != UNBOUNDED) malformed("a property is listed twice");
        rank = i;
        if (i > 0 && program.text(shape.name(static_cast<uint32_t>(shape.by_name[i - 1]))) >=
                         program.text(shape.name(static_cast<uint32_t>(shape.by_name[i]))))
            malformed("names aren't sorted");
    }
    shape.required_from.assign(n + 1, 0);
    shape.open_from.assign(n + 1, 0);
    shape.next_required.assign(n + 1, n);
    for (uint32_t i = n; i-- > 0;) {
        shape.required_from[i] = shape.required_from[i + 1] + shape.required(i);
        shape.open_from[i] = shape.open_from[i + 1] + (shape.type(i) >= 0);
        shape.next_required[i] = shape.required(i) ? i : shape.next_required[i + 1];
    }
}

void read_object(Program& program, Reader in, const Sizes& sizes) {
    ObjectShape shape{};
    shape.min = in.least();
    shape.max = in.most();
    const uint32_t n = in.count("a number of properties");
    const size_t begin = in.at();
    for (uint32_t i = 0; i < n; ++i) {
        const std::string& name = program.texts[in.id("a name", program.texts.size())];
        if (name.size() < 2 || name.front() != '"' || name.back() != '"') malformed("a name without quotes");
        const int32_t type = in.in_range("a type", -1, static_cast<int64_t>(sizes.types));
        if (in.in_range("a flag", 0, 2) != 0 && type < 0) malformed("a required property is forbidden");
    }
    shape.properties = std::span<const int32_t>(program.words).subspan(begin, size_t{3} * n);
    shape.by_name = in.ids("a property", n, 0, n);
    index_object(program, shape);
    for (uint32_t i = 0; i < n; ++i)
        shape.names.push_back(decode_string(std::string_view(program.text(shape.name(i))).substr(1)));
    shape.first_class = static_cast<uint32_t>(program.classes.size());
    const uint32_t classes = in.count("a number of key classes");
    for (uint32_t i = 0; i < classes; ++i) {
        KeyClass one{};
        one.language = in.id("a language", program.languages.size());
        one.type = in.in_range("a type", -1, static_cast<int64_t>(sizes.types));
        one.shape = static_cast<uint32_t>(program.objects.size());
        if (one.type >= 0) program.classes.push_back(one);
    }
    shape.last_class = static_cast<uint32_t>(program.classes.size());
    program.objects.push_back(std::move(shape));
}

void read_root(Program& program, Reader& in, const Sizes& sizes, uint32_t triggers) {
    for (uint32_t i = 0; i < triggers; ++i) {
        Trigger trigger{};
        trigger.trigger = in.id("a text", program.texts.size());
        trigger.begin = in.id("a text", program.texts.size());
        trigger.type = in.id("a type", sizes.types);
        trigger.end = in.id("a text", program.texts.size());
        const std::string& begin = program.texts[trigger.begin];
        const std::string& first = program.texts[trigger.trigger];
        if (first.empty() || !begin.starts_with(first)) malformed("a trigger that doesn't begin its text");
        program.triggers.push_back(trigger);
    }
    const auto root = static_cast<uint32_t>(program.root);
    if (program.root_kind == Program::JSON && root >= sizes.types) malformed("the root isn't a type");
    if (program.root_kind == Program::TEXT && root >= program.languages.size()) malformed("the root isn't a language");
    if (program.root_kind == Program::TRIGGERS && triggers == 0) malformed("no triggers");
}

template <typename T>
size_t held(const std::vector<T>& v) {
    return v.capacity() * sizeof(T);
}

}  // namespace

Language::Language(std::span<const uint8_t> data, uint64_t id) : dfa(Dfa::from_bytes(data)), id(id) {
    const uint32_t n = dfa.states;
    for (uint32_t s = 0; s < n; ++s) endless = endless && dfa.words_from(s) == INFINITE_WORDS;
    // Shortest words by breadth-first search against the transitions.
    shortest.assign(n, UNBOUNDED);
    std::vector<std::vector<uint32_t>> before(n);
    for (uint32_t s = 0; s < n; ++s)
        for (uint32_t c = 0; c < dfa.classes; ++c)
            if (const uint32_t t = dfa.delta[size_t{s} * dfa.classes + c]; t != Dfa::DEAD)
                if (before[t].empty() || before[t].back() != s) before[t].push_back(s);
    std::vector<uint32_t> queue;
    for (uint32_t s = 0; s < n; ++s)
        if (dfa.accepting[s]) shortest[s] = 0, queue.push_back(s);
    for (size_t i = 0; i < queue.size(); ++i)
        for (const uint32_t s : before[queue[i]])
            if (shortest[s] == UNBOUNDED) shortest[s] = shortest[queue[i]] + 1, queue.push_back(s);
    for (const uint32_t x : shortest) longest_shortest = std::max(longest_shortest, x);
}

bool Language::reaches(uint32_t state, uint32_t lo, uint32_t hi) const {
    if (state == Dfa::DEAD || lo > hi || shortest[state] == UNBOUNDED) return false;
    if (dfa.universal(state)) return true;
    if (lo <= shortest[state]) return shortest[state] <= hi;
    if (hi == UNBOUNDED && dfa.words_from(state) == INFINITE_WORDS) return true;
    return dfa.reaches(state, lo, hi);
}

size_t Language::nbytes() const {
    return sizeof(Language) + held(dfa.bounds) + held(dfa.range_class) + held(dfa.delta) + held(dfa.accepting) +
           4 * held(shortest);  // the automaton counts words and lengths, too
}

Program::Program(LanguagePool& pool, std::span<const std::string> language_bytes, std::vector<std::string> all_texts,
                 std::string_view packed)
    : texts(std::move(all_texts)) {
    if (packed.size() % 4 != 0) malformed("its size isn't a multiple of four");
    words.resize(packed.size() / 4);
    if (!words.empty()) std::memcpy(words.data(), packed.data(), packed.size());
    for (const std::string& data : language_bytes) languages.push_back(pool.intern(data));
    Reader in(*this, 0);
    if (const int32_t version = in.next(); version != VERSION) malformed("version " + std::to_string(version));
    root_kind = static_cast<Root>(in.in_range("the kind of root", 0, 3));
    root = in.next();
    any_order = in.in_range("a flag", 0, 2) != 0;
    whitespace = static_cast<uint32_t>(in.in_range("white space", 0, 1 << 15));
    Sizes sizes{};
    sizes.types = in.count("a number of types");
    sizes.arrays = in.count("a number of array shapes");
    sizes.objects = in.count("a number of object shapes");
    const uint32_t n_triggers = in.count("a number of triggers");
    read_root(*this, in, sizes, n_triggers);
    auto offset = [&] { return in.id("an offset", words.size()); };
    for (size_t i = 0; i < sizes.types; ++i) read_type(*this, Reader(*this, offset()), sizes);
    for (size_t i = 0; i < sizes.arrays; ++i) read_array(*this, Reader(*this, offset()), sizes);
    for (size_t i = 0; i < sizes.objects; ++i) read_object(*this, Reader(*this, offset()), sizes);
}

size_t Program::nbytes() const {
    size_t n = sizeof(Program) + held(words) + held(texts) + held(languages) + held(triggers) + held(types) +
               held(terms) + held(arrays) + held(objects) + held(classes);
    for (const std::string& text : texts) n += text.capacity() > 15 ? text.capacity() + 1 : 0;
    for (const auto& language : languages) n += language->nbytes();
    for (const ArrayShape& shape : arrays) n += held(shape.contains);
    for (const ObjectShape& shape : objects)
        n += held(shape.rank) + held(shape.required_from) + held(shape.open_from) + held(shape.next_required) +
             held(shape.names);
    return n;
}

}  // namespace forge::grammar
