// Timed loops for measure.hpp.
#include "measure.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "memory.hpp"

namespace forge {
namespace {

constexpr int64_t kReadChunk = int64_t{1} << 16;
constexpr int64_t kLeastRead = int64_t{1} << 26;

double now_seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A register of every processor's vector unit: loads of words would be the limit within a cache.
typedef uint64_t Pair __attribute__((vector_size(16)));

// Four independent sums, so that loads wait for none.
uint64_t read_all(const uint8_t* p, int64_t bytes) {
    Pair a{}, b{}, c{}, d{};
    for (int64_t i = 0; i + 64 <= bytes; i += 64) {
        __builtin_prefetch(p + i + 4096);
        Pair line[4];
        std::memcpy(line, p + i, sizeof line);
        a += line[0];
        b += line[1];
        c += line[2];
        d += line[3];
    }
    a += b + c + d;
    return a[0] + a[1];
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
    std::memset(buffer.get(), 1, static_cast<size_t>(bytes));
    // Small buffers are read again within a region, so that its beginning and end don't count.
    const int64_t repeats = std::max<int64_t>(1, kLeastRead / bytes);
    std::atomic<uint64_t> sink{0};
    double best = 0;
    for (int pass = 0; pass < 8; ++pass) {
        const double start = now_seconds();
        pool.run([&](Worker& worker) {
            for (int64_t i = 0; i < repeats; ++i)
                worker.share(bytes, kReadChunk, [&](int64_t begin, int64_t end) {
                    sink.fetch_add(read_all(buffer.get() + begin, end - begin), std::memory_order_relaxed);
                });
        });
        if (pass > 0) best = std::max(best, static_cast<double>(bytes * repeats) / (now_seconds() - start));
    }
    return best;
}

double measure_dot(Pool& pool, const Kernels& kernels) { return measure_registers<int32_t>(pool, kernels.dot_ceiling); }

double measure_fma(Pool& pool, const Kernels& kernels) { return measure_registers<float>(pool, kernels.fma_ceiling); }

}  // namespace forge
