// Python's Pool, the instruction sets, the ceilings.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <stdexcept>
#include <vector>

#include "bindings.hpp"
#include "governor.hpp"
#include "measure.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace forge {
namespace {

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : runnable_kernels()) names.emplace_back(kernels->isa);
    return names;
}

// How often each index was handed out, over several shares in one region with barriers between some of them; uneven
// chunks (one worker lingers in its own) provoke stealing.
nb::object count_shared(BoundPool& self, int64_t total, int64_t grain, int shares, int64_t linger, int64_t most) {
    if (total < 0 || total > (int64_t{1} << 24) || shares < 0 || linger < 0)
        throw std::invalid_argument("total must be in 0 .. 2^24, shares and linger at least 0");
    std::vector<int64_t> counts(static_cast<size_t>(total));
    {
        nb::gil_scoped_release released;
        std::vector<std::atomic<int64_t>> times(static_cast<size_t>(total));
        auto body = [&](Worker& worker) {
            for (int share = 0; share < shares; ++share) {
                worker.share(total, grain, [&](int64_t begin, int64_t end) {
                    for (int64_t i = begin; i < end; ++i) times[static_cast<size_t>(i)].fetch_add(1);
                    if (worker.index == share % worker.count)
                        for (int64_t spin = 0; spin < linger; ++spin) asm volatile("" : : "r"(spin));
                });
                if (share % 3 == 2) worker.barrier();
            }
        };
        self.pool.run(body, most);
        for (size_t i = 0; i < counts.size(); ++i) counts[i] = times[i].load();
    }
    return nb::cast(counts);
}

// A running total that every worker adds to between barriers and compares after each: how many comparisons failed.
int64_t count_barrier_errors(BoundPool& self, int64_t rounds) {
    nb::gil_scoped_release released;
    std::atomic<int64_t> errors{0};
    // Not atomic on purpose: the barrier alone orders writers and readers.
    std::vector<int64_t> written(static_cast<size_t>(self.pool.size()) * 8);
    self.pool.run([&](Worker& worker) {
        for (int64_t round = 1; round <= rounds; ++round) {
            written[static_cast<size_t>(worker.index) * 8] = round;
            worker.barrier();
            for (int i = 0; i < worker.count; ++i)
                if (written[static_cast<size_t>(i) * 8] != round) errors.fetch_add(1);
            worker.barrier();
        }
    });
    return errors.load();
}

// Whether a region inside a region is refused.
bool refuses_nesting(BoundPool& self) {
    nb::gil_scoped_release released;
    std::atomic<int> refused{0};
    self.pool.run([&](Worker& worker) {
        if (worker.index != 0) return;
        try {
            self.pool.run([](Worker&) {});
        } catch (const std::logic_error&) {
            refused.fetch_add(1);
        }
    });
    return refused.load() == 1;
}

nb::dict statistics(const BoundPool& self) {
    const Pool::Statistics s = self.pool.statistics();
    nb::dict out;
    out["regions"] = s.regions;
    out["reduced_regions"] = s.reduced_regions;
    out["long_waits"] = s.long_waits;
    out["sleeps"] = s.sleeps;
    return out;
}

}  // namespace

void bind_pool(nb::module_& m) {
    m.def("isas", &isas, "Instruction sets that are built in and can run here, best first.");

    nb::class_<BoundPool>(m, "Pool", "Threads and the kernels of one instruction set.")
        .def(nb::init<int, const std::string&, int, float>(), "threads"_a, "isa"_a, "activation_bits"_a = 8, "loud"_a = 0.f)
        .def_prop_ro("activation_bits", [](const BoundPool& self) { return 8 * self.rounding.terms; })
        .def_prop_ro("loud", [](const BoundPool& self) { return self.rounding.loud; })
        .def_prop_ro("threads", [](const BoundPool& self) { return self.pool.size(); })
        .def_prop_ro("isa", [](const BoundPool& self) { return self.kernels.isa; })
        .def_prop_ro("statistics", &statistics, "Counters: regions, reduced_regions, long_waits, sleeps.")
        .def("count_shared", &count_shared, "total"_a, "grain"_a, "shares"_a = 1, "linger"_a = 0,
             "most"_a = INT64_MAX,
             "Self-test: how often work sharing hands out each index in one region, by at most so many workers.")
        .def("count_barrier_errors", &count_barrier_errors, "rounds"_a,
             "Self-test: values that weren't visible behind a barrier.")
        .def("refuses_nesting", &refuses_nesting, "Self-test: whether a region inside a region is refused.");

    nb::class_<Governor>(m, "Governor", "The pool's rule for leaving out workers; times in nanoseconds.")
        .def(nb::init<>())
        .def("idle_workers", &Governor::idle_workers, "now"_a, "threads"_a)
        .def("due", &Governor::due, "now"_a)
        .def("report", &Governor::report, "now"_a, "delay"_a, "active"_a)
        .def("calm", &Governor::calm, "now"_a)
        .def("forget", &Governor::forget);

    m.def(
        "measure_bandwidth",
        [](BoundPool& pool, int64_t bytes) {
            if (bytes < 1) throw std::invalid_argument("a buffer has at least one byte");
            nb::gil_scoped_release released;
            return measure_bandwidth(pool.pool, bytes) * 1e-9;
        },
        "pool"_a, "bytes"_a, "GB/s read by all threads from a buffer of that size.");
    m.def(
        "measure_dot",
        [](BoundPool& pool) {
            nb::gil_scoped_release released;
            return measure_dot(pool.pool, pool.kernels) * 1e-9;
        },
        "pool"_a, "Int8 Gop/s of all threads, from registers.");
    m.def(
        "measure_fma",
        [](BoundPool& pool) {
            nb::gil_scoped_release released;
            return measure_fma(pool.pool, pool.kernels) * 1e-9;
        },
        "pool"_a, "Float32 Gop/s of all threads, from registers.");
}

}  // namespace forge
