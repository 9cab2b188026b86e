// Where one sequence stands in its grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "masks.hpp"

namespace forge::grammar {

// One method at a time, from any thread.
class Matcher {
public:
    explicit Matcher(std::shared_ptr<Grammar> grammar);

    void fill(uint32_t* row);
    bool accept(int64_t token);
    size_t validate(std::span<const int64_t> tokens);
    // Throws std::invalid_argument where there aren't so many.
    void rollback(int64_t tokens);
    std::string forced();
    bool is_final();
    const Vocabulary& vocabulary() const { return *grammar_->vocabulary; }

private:
    struct Point {
        Configuration at;
        size_t size;  // of the text
        bool ended;
    };

    // Runs a token's bytes from a configuration; the result is the first or the second of `steps_`.
    const Configuration* run(const Configuration& from, std::string_view bytes);
    bool advance(int64_t token);
    const Point& last() const { return history_.back(); }

    std::shared_ptr<Grammar> grammar_;
    Machine machine_;
    Masks masks_;
    Text text_;
    std::vector<Point> history_;
    Configuration steps_[2];
    std::mutex mutex_;
};

}  // namespace forge::grammar
