// Timed loops for measure.hpp.
#include "measure.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "memory.hpp"

namespace forge {
namespace {

double now_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Four independent sums, so that loads wait for none.
uint64_t read_all(const uint8_t* p, int64_t bytes) {
    uint64_t sums[4] = {};
    for (int64_t i = 0; i + 64 <= bytes; i += 64) {
        __builtin_prefetch(p + i + 4096);
        uint64_t words[8];
        std::memcpy(words, p + i, sizeof words);
        for (int w = 0; w < 8; ++w) sums[w % 4] += words[w];
    }
    return sums[0] + sums[1] + sums[2] + sums[3];
}

// Operations a second of a loop that all workers run, the best of several passes.
template <class Sum>
double measure_registers(Pool& pool, double (*loop)(int64_t rounds, Sum* sink)) {
    double best = 0;
    for (int pass = 0; pass < 8; ++pass) {
        std::atomic<double> operations{0};
        std::atomic<Sum> sink{0};
        const double start = now_seconds();
        pool.run([&](Worker&) {
            Sum sum = 0;
            operations.fetch_add(loop(200'000, &sum));
            sink.store(sum);
        });
        best = std::max(best, operations.load() / (now_seconds() - start));
    }
    return best;
}

}  // namespace

double measure_bandwidth(Pool& pool, int64_t bytes) {
    const auto buffer = allocate_weights(static_cast<size_t>(bytes));
    std::atomic<uint64_t> sink{0};
    double best = 0;
    for (int pass = 0; pass < 8; ++pass) {
        const double start = now_seconds();
        pool.run([&](Worker& worker) {
            worker.share(bytes, int64_t{1} << 18, [&](int64_t begin, int64_t end) {
                if (pass == 0) std::memset(buffer.get() + begin, 1, static_cast<size_t>(end - begin));
                sink.fetch_add(read_all(buffer.get() + begin, end - begin), std::memory_order_relaxed);
            });
        });
        if (pass > 0) best = std::max(best, static_cast<double>(bytes) / (now_seconds() - start));
    }
    return best;
}

double measure_dot(Pool& pool, const Kernels& kernels) { return measure_registers<int32_t>(pool, kernels.dot_ceiling); }

double measure_fma(Pool& pool, const Kernels& kernels) { return measure_registers<float>(pool, kernels.fma_ceiling); }

}  // namespace forge
