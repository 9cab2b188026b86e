// A configuration for every token accepted; taking tokens back means going back to an earlier one.
#include "matcher.hpp"

#include <algorithm>
#include <stdexcept>

namespace forge::grammar {
namespace {

constexpr size_t LONGEST_FORCED = 256;

}  // namespace

Matcher::Matcher(std::shared_ptr<Grammar> grammar)
    : grammar_(std::move(grammar)), machine_(grammar_->program), masks_(*grammar_) {
    history_.push_back({machine_.start(), 0, false});
}

void Matcher::fill(uint32_t* row) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (last().ended)
        std::fill(row, row + vocabulary().words(), 0);
    else
        masks_.fill(machine_, last().at, text_, row);
}

const Configuration* Matcher::run(const Configuration& from, std::string_view bytes) {
    const Configuration* at = &from;
    text_.reserve(bytes.size());
    for (size_t i = 0; i < bytes.size(); ++i) {
        Configuration& next = at == &steps_[0] ? steps_[1] : steps_[0];
        if (!machine_.step(*at, text_.with(i, static_cast<uint8_t>(bytes[i])), next)) return nullptr;
        at = &next;
    }
    return at;
}

bool Matcher::advance(int64_t token) {
    if (last().ended) return false;
    if (vocabulary().is_eos(token)) {
        if (!machine_.is_final(last().at, text_.view())) return false;
        history_.push_back({Configuration(), text_.size(), true});
        return true;
    }
    const std::string_view bytes = vocabulary().bytes(token);
    if (bytes.empty()) return false;
    const Configuration* after = run(last().at, bytes);
    if (after == nullptr) return false;
    text_.resize(text_.size() + bytes.size());
    history_.push_back({*after, text_.size(), false});
    if (!after->in_lexeme()) history_.back().at.lexeme = Lexeme();
    return true;
}

bool Matcher::accept(int64_t token) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return advance(token);
}

size_t Matcher::validate(std::span<const int64_t> tokens) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t points = history_.size();
    size_t n = 0;
    while (n < tokens.size() && advance(tokens[n])) ++n;
    history_.resize(points);
    text_.resize(last().size);
    return n;
}

void Matcher::rollback(int64_t tokens) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto accepted = static_cast<int64_t>(history_.size()) - 1;
    if (tokens < 0 || tokens > accepted)
        throw std::invalid_argument("can't take back " + std::to_string(tokens) + " of " + std::to_string(accepted) +
                                    " tokens");
    history_.erase(history_.end() - tokens, history_.end());
    text_.resize(last().size);
}

std::string Matcher::forced() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::string out;
    if (last().ended) return out;
    text_.reserve(LONGEST_FORCED);
    Configuration at = last().at, next, chosen;
    while (out.size() < LONGEST_FORCED) {
        const std::string_view so_far =
            out.empty() ? text_.view() : text_.with(out.size() - 1, static_cast<uint8_t>(out.back()));
        if (machine_.is_final(at, so_far)) break;
        int choices = 0, byte = 0;
        for (int b = 0; b < 256 && choices < 2; ++b) {
            if (!machine_.step(at, text_.with(out.size(), static_cast<uint8_t>(b)), next)) continue;
            ++choices;
            byte = b;
            std::swap(next, chosen);
        }
        if (choices != 1) break;
        out.push_back(static_cast<char>(byte));
        std::swap(at, chosen);
    }
    return out;
}

bool Matcher::is_final() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return last().ended || machine_.is_final(last().at, text_.view());
}

}  // namespace forge::grammar
