// Runs CUDA C++ of the simple kind on a CPU: a block at a time, each of its threads a fiber, warp shuffles as meeting
// points. Enough for products.cu; a shuffle that not all threads of a warp reach ends the process.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define FORGE_SHIM
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace shim {

struct Index { unsigned x; };
struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool finished = false;
    int meetings = 0;  // shuffles reached so far
    uint64_t posted = 0;
};

inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline unsigned current, block;
inline std::function<void()> kernel;

inline void pause() { swapcontext(&fibers[current].context, &scheduler); }

inline void enter() {
    kernel();
    fibers[current].finished = true;
    pause();
}

// Every thread goes on to its next meeting, or its end; then all of a warp must stand at the same one.
inline void run_block(unsigned threads) {
    fibers = std::vector<Fiber>(threads);
    for (Fiber& fiber : fibers) {
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.data();
        fiber.context.uc_stack.ss_size = fiber.stack.size();
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    for (bool alive = true; alive;) {
        alive = false;
        for (current = 0; current < threads; ++current) {
            if (!fibers[current].finished) swapcontext(&scheduler, &fibers[current].context);
            alive |= !fibers[current].finished;
        }
        for (unsigned i = 0; i < threads; ++i) {
            const Fiber &own = fibers[i], &first = fibers[i / 32 * 32];
            if (own.finished != first.finished || own.meetings != first.meetings) {
                std::fprintf(stderr, "block %u: threads %u and %u of a warp part at a shuffle\n", block, i, i / 32 * 32);
                std::abort();
            }
        }
    }
}

inline void launch(unsigned blocks, unsigned threads, std::function<void()> body) {
    kernel = body;
    for (block = 0; block < blocks; ++block) run_block(threads);
}

}  // namespace shim

#define threadIdx (shim::Index{shim::current})
#define blockIdx (shim::Index{shim::block})

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
    using namespace shim;
    std::memcpy(&fibers[current].posted, &value, sizeof value);
    ++fibers[current].meetings;
    pause();
    T other;
    std::memcpy(&other, &fibers[current ^ mask].posted, sizeof other);
    ++fibers[current].meetings;
    pause();  // nobody posts again before all have read
    return other;
}

inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 32; i += 8) sum += int(int8_t(a >> i)) * int(int8_t(b >> i));
    return sum;
}

inline int __float2int_rn(float value) { return int(std::nearbyint(value)); }

inline float from_half(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float size = exponent == 0    ? std::ldexp(float(fraction), -24)
                       : exponent == 31 ? (fraction ? NAN : INFINITY)
                                        : std::ldexp(float(1024 + fraction), exponent - 25);
    return bits & 0x8000 ? -size : size;
}
