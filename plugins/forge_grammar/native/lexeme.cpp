// Literals go by bytes, languages by code points, so that lengths count code points and patterns see through escapes.
#include "lexeme.hpp"

#include <algorithm>

#include "canonical.hpp"
#include "distinct.hpp"
#include "shapes.hpp"

namespace forge::grammar {
namespace {

// Narrows sorted texts [low, high), alike up to `depth`, to those that go on with a byte.
template <typename Text>
bool narrow(const Text& text, uint32_t& low, uint32_t& high, size_t depth, uint8_t byte) {
    const auto first = [&](uint32_t from, int bound) {
        uint32_t to = high;
        while (from < to) {
            const uint32_t mid = from + (to - from) / 2;
            const std::string& x = text(mid);
            const int at = x.size() > depth ? static_cast<uint8_t>(x[depth]) : -1;
            if (at < bound)
                from = mid + 1;
            else
                to = mid;
        }
        return from;
    };
    low = first(low, byte);
    high = first(low, byte + 1);
    return low < high;
}

bool narrow_entry(const Program& program, Entry& entry, size_t depth, uint8_t byte) {
    if (entry.kind == Entry::LITERAL) {
        const auto& ids = program.types[entry.source].literals;
        return narrow([&](uint32_t i) -> const std::string& { return program.text(ids[i]); }, entry.a, entry.b, depth,
                      byte);
    }
    const ObjectShape& shape = program.objects[entry.source];
    const auto name = [&](uint32_t i) -> const std::string& {
        return program.text(shape.name(static_cast<uint32_t>(shape.by_name[i])));
    };
    return narrow(name, entry.a, entry.b, depth, byte);
}

const std::string& literal(const Program& program, const Entry& entry, uint32_t i) {
    return program.text(program.types[entry.source].literals[i]);
}

// The values that an entry which isn't a key mustn't have.
const Ref<Used>& avoided(const Scene& scene, const Entry& entry) { return scene.frame.requests[entry.tag].avoid; }

bool literals_viable(const Scene& scene, const Entry& entry) {
    const Ref<Used>& avoid = avoided(scene, entry);
    if (!avoid) return true;
    for (uint32_t i = entry.a; i < entry.b; ++i)
        if (literal_is_fresh(literal(scene.program, entry, i), avoid)) return true;
    return false;
}

bool names_viable(const Scene& scene, const Entry& entry) {
    const NextKey next(scene.program, scene.frame, scene.frame.alternatives[entry.tag]);
    return next.takes_any(entry.a, entry.b);
}

uint32_t language_of(const Program& program, const Entry& entry) {
    switch (entry.kind) {
        case Entry::TERM: return program.terms[entry.source].language;
        case Entry::KEY_CLASS: return program.classes[entry.source].language;
        default: return entry.source;
    }
}

bool may_be_taken(const Scene& scene, const Entry& entry) {
    switch (entry.kind) {
        case Entry::TERM:
            return !scene.program.terms[entry.source].excluded.empty() || avoided(scene, entry);
        case Entry::KEY_CLASS:
            return scene.frame.used || !scene.frame.alternatives[entry.tag].ties.empty() ||
                   scene.program.objects[scene.program.classes[entry.source].shape].size() > 0;
        default: return false;
    }
}

// Adds the declared names that begin with a text, decoded.
void add_names(const Program& program, const ObjectShape& shape, std::string_view begin,
               std::vector<std::string>& names) {
    std::string text = encode_string(begin);
    text.pop_back();
    const auto name = [&](int32_t i) -> const std::string& {
        return program.text(shape.name(static_cast<uint32_t>(i)));
    };
    auto at = std::lower_bound(shape.by_name.begin(), shape.by_name.end(), text,
                               [&](int32_t i, const std::string& x) { return name(i) < x; });
    for (; at != shape.by_name.end() && name(*at).starts_with(text); ++at)
        names.push_back(decode_string(std::string_view(name(*at)).substr(1)));
}

// What's left of taken texts that begin with the lexeme so far. They're views of `names` where they had to be decoded.
Taken rests(const Scene& scene, const Lexeme& lexeme, const Entry& entry, std::vector<std::string>& names) {
    Taken taken;
    const Program& program = scene.program;
    const std::string so_far = decode_string(scene.text.substr(lexeme.start + 1));
    if (entry.kind == Entry::TERM) {
        for (const int32_t id : program.terms[entry.source].excluded) taken.push_back(program.text(id));
        add_used_strings(avoided(scene, entry), taken);
    } else {
        add_names(program, program.objects[program.classes[entry.source].shape], so_far, names);
        add_hopeless_keys(program, scene.frame, entry.tag, program.classes[entry.source].type, names);
        taken.assign(names.begin(), names.end());
        for (const Used* node = scene.frame.used.get(); node != nullptr; node = node->below.get())
            taken.push_back(node->text);
    }
    std::erase_if(taken, [&](std::string_view text) { return !text.starts_with(so_far); });
    for (std::string_view& text : taken) text.remove_prefix(so_far.size());
    return taken;
}

// Whether lengths and the automaton alone decide, whatever is taken.
bool inexhaustible(const Language& language, uint32_t state, uint32_t hi) {
    if (hi == UNBOUNDED) return language.dfa.words_from(state) == INFINITE_WORDS;
    return hi > 0 && language.dfa.universal(state);
}

bool term_viable(const Scene& scene, const Lexeme& lexeme, const Entry& entry) {
    const Formed f = formed(scene.program, lexeme, entry);
    if (f.state == Dfa::DEAD) return false;
    if (!f.language.reaches(f.state, f.lo, f.hi)) return false;
    if (inexhaustible(f.language, f.state, f.hi) || !may_be_taken(scene, entry)) return true;
    std::vector<std::string> names;
    return some_word(f.language, f.state, f.lo, f.hi, rests(scene, lexeme, entry, names));
}

bool can_begin(const Scene& scene, const Lexeme& lexeme, const Entry& entry) {
    Range ranges[10];
    const uint32_t n = possible(lexeme.partial, ranges);
    const Formed f = formed(scene.program, lexeme, entry);
    if (f.hi > 1 && f.language.dfa.universal(f.state)) return true;
    std::vector<std::string> names;
    Taken taken;
    const bool endless = f.hi == UNBOUNDED && f.language.endless;
    if (!endless && may_be_taken(scene, entry)) taken = rests(scene, lexeme, entry, names);
    return some_word_in(f.language, f.state, f.lo, f.hi, taken, ranges, n);
}

bool is_text(const Entry& entry) { return entry.kind != Entry::LITERAL && entry.kind != Entry::NAME; }

bool longer_than_allowed(const Program& program, const Lexeme& lexeme, const Entry& entry) {
    return entry.kind == Entry::TERM && lexeme.length > program.terms[entry.source].max;
}

// Whether a complete text isn't taken.
bool is_fresh(const Scene& scene, const Lexeme& lexeme, const Entry& entry) {
    if (!may_be_taken(scene, entry)) return true;
    const Program& program = scene.program;
    const std::string text = decode_string(scene.text.substr(lexeme.start + 1));
    if (entry.kind == Entry::KEY_CLASS) {
        std::vector<std::string> hopeless;
        add_hopeless_keys(program, scene.frame, entry.tag, program.classes[entry.source].type, hopeless);
        return !declares(program, program.objects[program.classes[entry.source].shape], text) &&
               !Used::contains(scene.frame.used, text) &&
               std::find(hopeless.begin(), hopeless.end(), text) == hopeless.end();
    }
    for (const int32_t id : program.terms[entry.source].excluded)
        if (program.text(id) == text) return false;
    return !Used::contains(avoided(scene, entry), '"' + text);
}

}  // namespace

Formed formed(const Program& program, const Lexeme& lexeme, const Entry& entry) {
    const Language& language = program.language(language_of(program, entry));
    if (entry.kind != Entry::TERM) return {language, entry.a, 0, UNBOUNDED};
    const Term& term = program.terms[entry.source];
    const uint32_t lo = term.min > lexeme.length ? term.min - lexeme.length : 0;
    const uint32_t hi = term.max == UNBOUNDED ? UNBOUNDED : term.max - std::min(term.max, lexeme.length);
    return {language, entry.a, lo, hi};
}

bool text_matters(const Scene& scene, const Lexeme& lexeme, const Entry& entry) {
    if (entry.kind == Entry::NUMBER) return static_cast<bool>(avoided(scene, entry));
    if (!is_text(entry) || !may_be_taken(scene, entry)) return false;
    std::vector<std::string> names;
    return !rests(scene, lexeme, entry, names).empty();
}

bool start_string(const Scene& scene, Lexeme& lexeme) {
    const Program& program = scene.program;
    lexeme = {static_cast<uint32_t>(scene.text.size() - 1), 0, {}, std::move(lexeme.entries)};
    lexeme.entries.clear();
    for (uint32_t tag = 0; tag < scene.frame.requests.size(); ++tag) {
        const Request& request = scene.frame.requests[tag];
        const auto id = static_cast<uint32_t>(request.type);
        const Type& type = program.types[id];
        Entry words{Entry::LITERAL, tag, id, 0, static_cast<uint32_t>(type.literals.size())};
        if (narrow_entry(program, words, 0, '"') && literals_viable(scene, words)) lexeme.entries.push_back(words);
        for (uint32_t i = type.first_term; i < type.last_term; ++i) {
            const Dfa& dfa = program.language(program.terms[i].language).dfa;
            const Entry entry{Entry::TERM, tag, i, dfa.start, 0};
            if (term_viable(scene, lexeme, entry)) lexeme.entries.push_back(entry);
        }
    }
    return !lexeme.entries.empty();
}

bool start_bare(const Scene& scene, Lexeme& lexeme) {
    const Program& program = scene.program;
    const auto byte = static_cast<uint8_t>(scene.text.back());
    lexeme = {static_cast<uint32_t>(scene.text.size() - 1), 0, {}, std::move(lexeme.entries)};
    lexeme.entries.clear();
    if (byte >= 0x80 || byte == '"') return false;
    for (uint32_t tag = 0; tag < scene.frame.requests.size(); ++tag) {
        const Request& request = scene.frame.requests[tag];
        const auto id = static_cast<uint32_t>(request.type);
        const Type& type = program.types[id];
        Entry words{Entry::LITERAL, tag, id, 0, static_cast<uint32_t>(type.literals.size())};
        if (narrow_entry(program, words, 0, byte) && literals_viable(scene, words)) lexeme.entries.push_back(words);
        for (const int32_t language : type.numbers) {
            const auto source = static_cast<uint32_t>(language);
            const Language& numbers = program.language(source);
            const uint32_t state = numbers.dfa.step(numbers.dfa.start, byte);
            if (state == Dfa::DEAD) continue;
            if (!number_is_fresh(numbers, state, std::string(1, static_cast<char>(byte)), request.avoid)) continue;
            lexeme.entries.push_back({Entry::NUMBER, tag, source, state, 0});
        }
    }
    return !lexeme.entries.empty();
}

bool start_key(const Scene& scene, Lexeme& lexeme) {
    const Program& program = scene.program;
    lexeme = {static_cast<uint32_t>(scene.text.size() - 1), 0, {}, std::move(lexeme.entries)};
    lexeme.entries.clear();
    for (uint32_t tag = 0; tag < scene.frame.alternatives.size(); ++tag) {
        const Alternative& a = scene.frame.alternatives[tag];
        const ObjectShape& shape = program.objects[a.shape];
        const NextKey next(program, scene.frame, a);
        if (next.takes_any(0, shape.size()))
            lexeme.entries.push_back({Entry::NAME, tag, a.shape, 0, shape.size()});
        if (!next.takes_class()) continue;
        for (uint32_t k = shape.first_class; k < shape.last_class; ++k) {
            const uint32_t start = program.language(program.classes[k].language).dfa.start;
            const Entry entry{Entry::KEY_CLASS, tag, k, start, 0};
            if (term_viable(scene, lexeme, entry)) lexeme.entries.push_back(entry);
        }
    }
    return !lexeme.entries.empty();
}

bool start_text(const Program& program, Lexeme& lexeme) {
    const auto source = static_cast<uint32_t>(program.root);
    const uint32_t start = program.language(source).dfa.start;
    lexeme = {};
    if (start == Dfa::DEAD) return false;
    lexeme.entries.push_back({Entry::TEXT, 0, source, start, 0});
    return true;
}

bool step_string(const Scene& scene, const Lexeme& in, Lexeme& out) {
    const Program& program = scene.program;
    const auto byte = static_cast<uint8_t>(scene.text.back());
    out.partial = in.partial;
    const uint32_t cp = read_json(out.partial, byte);
    if (cp == REFUSED) return false;
    out.start = in.start;
    out.length = in.length + (cp != UNFINISHED);
    out.entries.clear();
    const size_t depth = scene.text.size() - 1 - in.start;
    for (Entry entry : in.entries) {
        bool viable;
        if (entry.kind == Entry::LITERAL) {
            viable = narrow_entry(program, entry, depth, byte) && literals_viable(scene, entry);
        } else if (entry.kind == Entry::NAME) {
            viable = narrow_entry(program, entry, depth, byte) && names_viable(scene, entry);
        } else if (cp == UNFINISHED) {
            viable = can_begin(scene, out, entry);
        } else {
            entry.a = program.language(language_of(program, entry)).dfa.step(entry.a, cp);
            viable =
                entry.a != Dfa::DEAD && !longer_than_allowed(program, out, entry) && term_viable(scene, out, entry);
        }
        if (viable) out.entries.push_back(entry);
    }
    return !out.entries.empty();
}

bool step_bare(const Scene& scene, const Lexeme& in, Lexeme& out) {
    const Program& program = scene.program;
    const auto byte = static_cast<uint8_t>(scene.text.back());
    out.entries.clear();
    if (byte >= 0x80) return false;
    out.start = in.start;
    const size_t depth = scene.text.size() - 1 - in.start;
    for (Entry entry : in.entries) {
        if (entry.kind == Entry::LITERAL) {
            if (narrow_entry(program, entry, depth, byte) && literals_viable(scene, entry))
                out.entries.push_back(entry);
            continue;
        }
        const Language& numbers = program.language(entry.source);
        entry.a = numbers.dfa.step(entry.a, byte);
        if (entry.a == Dfa::DEAD) continue;
        const Ref<Used>& avoid = avoided(scene, entry);
        if (avoid && !number_is_fresh(numbers, entry.a, std::string(scene.text.substr(in.start)), avoid)) continue;
        out.entries.push_back(entry);
    }
    return !out.entries.empty();
}

bool step_text(const Program& program, const Lexeme& in, uint8_t byte, Lexeme& out) {
    out.partial = in.partial;
    const uint32_t cp = read_utf8(out.partial, byte);
    if (cp == REFUSED) return false;
    Entry entry = in.entries.front();
    const Language& language = program.language(entry.source);
    if (cp == UNFINISHED) {
        Range ranges[10];
        const uint32_t n = possible(out.partial, ranges);
        if (!some_word_in(language, entry.a, 0, UNBOUNDED, {}, ranges, n)) return false;
    } else {
        entry.a = language.dfa.step(entry.a, cp);
        if (entry.a == Dfa::DEAD) return false;
    }
    out.start = in.start;
    out.length = in.length;
    out.entries.assign(1, entry);
    return true;
}

void string_accepted(const Scene& scene, const Lexeme& lexeme, std::vector<uint32_t>& requests) {
    requests.clear();
    const size_t depth = scene.text.size() - 1 - lexeme.start;
    for (Entry entry : lexeme.entries) {
        if (!requests.empty() && requests.back() == entry.tag) continue;
        bool accepted;
        if (entry.kind == Entry::LITERAL) {
            accepted = narrow_entry(scene.program, entry, depth, '"') && literals_viable(scene, entry);
        } else {
            const Formed f = formed(scene.program, lexeme, entry);
            accepted = f.language.dfa.accepting[f.state] && f.lo == 0 && is_fresh(scene, lexeme, entry);
        }
        if (accepted) requests.push_back(entry.tag);
    }
}

void bare_accepted(const Scene& scene, const Lexeme& lexeme, std::vector<uint32_t>& requests) {
    requests.clear();
    const std::string_view text = scene.text.substr(lexeme.start);
    for (const Entry& entry : lexeme.entries) {
        if (!requests.empty() && requests.back() == entry.tag) continue;
        bool accepted;
        if (entry.kind == Entry::LITERAL)
            accepted = literal(scene.program, entry, entry.a) == text;
        else
            accepted = scene.program.language(entry.source).dfa.accepting[entry.a];
        const Ref<Used>& avoid = avoided(scene, entry);
        if (accepted && avoid) accepted = !Used::contains(avoid, canonical(text));
        if (accepted) requests.push_back(entry.tag);
    }
}

void key_accepted(const Scene& scene, const Lexeme& lexeme, std::vector<KeyMatch>& matches) {
    const Program& program = scene.program;
    matches.clear();
    const size_t depth = scene.text.size() - 1 - lexeme.start;
    for (Entry entry : lexeme.entries) {
        if (entry.kind == Entry::NAME) {
            if (!narrow_entry(program, entry, depth, '"')) continue;
            const ObjectShape& shape = program.objects[entry.source];
            const auto property = static_cast<uint32_t>(shape.by_name[entry.a]);
            const NextKey next(program, scene.frame, scene.frame.alternatives[entry.tag]);
            if (next.takes(property)) matches.push_back({entry.tag, property, shape.type(property)});
        } else if (program.language(language_of(program, entry)).dfa.accepting[entry.a] &&
                   is_fresh(scene, lexeme, entry)) {
            matches.push_back({entry.tag, NO_INDEX, program.classes[entry.source].type});
        }
    }
}

}  // namespace forge::grammar
