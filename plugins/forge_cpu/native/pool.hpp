// The threads that kernels run on: a persistent pool, parallel regions, barriers, work sharing with stealing.
//
// For everybody who writes an operation: `pool.run([&](Worker& worker) { ... })` runs the body on every worker at once;
// inside, all workers call the same sequence of share() and barrier(). The pool knows nothing of tensors or Python.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace forge {

struct Team;  // what the workers of one pool share; pool.cpp

// One thread's view of a running parallel region. At most `Pool::size()` workers take part; fewer where the pool has
// seen that another process holds a core.
struct Worker {
    int index;
    int count;

    // Waits for all workers; what each wrote before is visible to all after.
    void barrier();

    // Calls body(begin, end) for [0, total) cut into chunks of `grain` indices (the last may be shorter), each exactly
    // once among all workers. A worker takes the chunks of a contiguous range from its head, then steals from the tails
    // of others' ranges. Returns when nothing is left to take: others may still be at work on theirs. Chunks grow
    // where there would be more than 2^20 of them.
    template <class Body>
    void share(int64_t total, int64_t grain, Body&& body) {
        Share work = begin_share(total, grain);
        int64_t begin, end;
        while (next_chunk(work, begin, end)) body(begin, end);
    }

    struct Share {
        int64_t total, grain, chunks;
        int victim;
    };
    // Not inline: their code must not depend on the instruction set of the kernel that calls them.
    Share begin_share(int64_t total, int64_t grain);
    bool next_chunk(Share& work, int64_t& begin, int64_t& end);

    Team* team;
    uint32_t share_epoch;
    uint32_t barrier_epoch;
};

class Pool {
public:
    // Starts threads - 1 threads; the caller of run() is the first worker. Where there are as many threads as the process
    // has cores, each worker but the caller is bound to one while no other process wants them (placement.hpp). Throws
    // std::invalid_argument unless 1 <= threads <= 256, std::system_error where a thread can't be started.
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int size() const;

    // Runs body(worker) on every worker and returns when all are done. The body must not throw. Calls from several
    // threads run one after the other. Throws std::logic_error from inside a region, and in a forked child.
    // Subnormal floats are flushed to zero inside.
    //
    // most: of how many workers the body can make use; the others aren't woken. Counts as 1 below it.
    template <class Body>
    void run(Body&& body, int64_t most = INT64_MAX) {
        using Plain = std::remove_reference_t<Body>;
        run_region([](Worker& worker, void* context) noexcept { (*static_cast<Plain*>(context))(worker); }, &body, most);
    }

    struct Statistics {
        int64_t regions;          // run() calls
        int64_t reduced_regions;  // those that left workers out because a core was taken
        int64_t long_waits;       // barrier waits so long that the next ones spin less
        int64_t sleeps;           // waits that ended in the kernel
    };
    Statistics statistics() const;

private:
    using Region = void (*)(Worker&, void*) noexcept;
    void run_region(Region region, void* context, int64_t most);
    std::unique_ptr<Team> team_;
};

}  // namespace forge
