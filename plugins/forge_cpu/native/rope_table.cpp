#include <cmath>

#include "operations.hpp"

namespace forge {

void rope_table(const std::int64_t* positions, const double* inverse_frequencies, std::int64_t pairs, double magnitude,
                float* table, std::int64_t begin, std::int64_t end) {
    for (std::int64_t row = begin; row < end; ++row) {
        float* cosines = table + row * 2 * pairs;
        float* sines = cosines + pairs;
        for (std::int64_t i = 0; i < pairs; ++i) {
            const double angle = static_cast<double>(positions[row]) * inverse_frequencies[i];
            cosines[i] = static_cast<float>(std::cos(angle) * magnitude);
            sines[i] = static_cast<float>(std::sin(angle) * magnitude);
        }
    }
}

}  // namespace forge
