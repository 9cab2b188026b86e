// Waiting, sharing and waking of pool.hpp's workers.
#include "pool.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <latch>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "governor.hpp"
#include "placement.hpp"
#include "run_delay.hpp"

#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace forge {
namespace {

constexpr int kCacheLine = 64;
constexpr int kMostThreads = 256;
constexpr int64_t kMostChunks = int64_t{1} << 20;
constexpr int kQuietSpins = 2000;       // pauses before sleeping while waits are short: tens of microseconds
constexpr int kDisturbedSpins = 100;    // after a wait that outlasted the limit below: its neighbour needs the core
constexpr int kDisturbedWaits = 16;     // short waits in a row until spinning is trusted again
constexpr int64_t kLongWait = 100'000;  // nanoseconds
constexpr int64_t kLongWakeUp = 1'000'000;

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

void pause_briefly() {
#if defined(__SSE__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

void sleep_while(const std::atomic<uint32_t>& word, uint32_t value) {
#ifdef __linux__
    static_assert(sizeof(std::atomic<uint32_t>) == sizeof(uint32_t));
    syscall(SYS_futex, reinterpret_cast<const uint32_t*>(&word), FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
#else
    word.wait(value);
#endif
}

void wake_all(std::atomic<uint32_t>& word) {
#ifdef __linux__
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, kMostThreads, nullptr, nullptr, 0);
#else
    word.notify_all();
#endif
}

// Subnormals cost a hundred times a normal operation; inside a region they are zero. The caller's mode comes back.
class FlushSubnormals {
public:
#if defined(__SSE__)
    FlushSubnormals() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040u); }
    ~FlushSubnormals() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__)
    FlushSubnormals() {
        asm volatile("mrs %0, fpcr" : "=r"(saved_));
        asm volatile("msr fpcr, %0" : : "r"(saved_ | (uint64_t{1} << 24)));
    }
    ~FlushSubnormals() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

private:
    uint64_t saved_;
#endif
};

// One worker's remaining chunks of the current share: epoch in the high 24 bits, then first and end of 20 bits each.
// Whoever touches a word of an older epoch first, owner or thief, sets it to the worker's whole range. A word of a newer
// epoch means that its toucher saw this share exhausted, so that nothing is left to take.
struct alignas(kCacheLine) Remaining {
    std::atomic<uint64_t> word{0};
};
constexpr uint64_t kChunkMask = (uint64_t{1} << 20) - 1;
constexpr uint32_t kEpochMask = (1u << 24) - 1;

uint64_t pack_range(uint32_t epoch, uint64_t first, uint64_t end) {
    return (uint64_t{epoch} << 40) | (first << 20) | end;
}
// Epochs wrap: the sign of their distance in 24 bits orders them.
int32_t epoch_distance(uint32_t a, uint32_t b) { return static_cast<int32_t>((a - b) << 8) >> 8; }

// A number that only grows, on which threads wait: they spin as long as that has paid off, then sleep.
struct alignas(kCacheLine) Signal {
    std::atomic<uint32_t> value{0};
    std::atomic<uint32_t> sleepers{0};

    void raise(uint32_t to) {
        // Sequentially consistent on both sides: either the sleeper sees the new value or we see the sleeper.
        value.store(to, std::memory_order_seq_cst);
        if (sleepers.load(std::memory_order_seq_cst) != 0) wake_all(value);
    }

    // Returns whether it slept.
    bool wait_past(uint32_t old, int spins) {
        for (int i = 0; i < spins; ++i) {
            if (value.load(std::memory_order_acquire) != old) return false;
            pause_briefly();
        }
        sleepers.fetch_add(1, std::memory_order_seq_cst);
        bool slept = false;
        while (value.load(std::memory_order_seq_cst) == old) {
            sleep_while(value, old);
            slept = true;
        }
        sleepers.fetch_sub(1, std::memory_order_relaxed);
        return slept;
    }
};

// What one worker alone writes.
struct alignas(kCacheLine) Own {
    int wary_waits = 0;  // waits left that spin only briefly
    RunDelay delay;      // of the pool's own threads: the caller of run() has one wherever it goes
    std::atomic<int64_t> long_waits{0};
    std::atomic<int64_t> sleeps{0};
};

thread_local bool inside_region = false;

}  // namespace

struct Team {
    explicit Team(int threads)
        : own(static_cast<size_t>(threads)),
          remaining(static_cast<size_t>(threads)),
          placement(threads),
          started(threads - 1) {}

    Signal region;   // counts regions and names their workers; the threads wait for it between them
    Signal barrier;  // counts barriers passed
    alignas(kCacheLine) std::atomic<int> arrived{0};
    std::vector<Own> own;
    std::vector<Remaining> remaining;

    void (*body)(Worker&, void*) noexcept = nullptr;
    void* context = nullptr;
    int active = 1;                   // workers of the last region
    const RunDelay* caller = nullptr;  // of the last region
    uint32_t barrier_epoch = 0;
    uint32_t share_epoch = 0;
    bool stopping = false;

    std::mutex one_region;
    Governor governor;
    Placement placement;
    std::latch started;
    std::atomic<int64_t> regions{0};
    std::atomic<int64_t> reduced_regions{0};
    int64_t process = getpid();
    std::vector<std::thread> threads;

    void take_part(int index, int count) {
        Worker worker{index, count, this, share_epoch, barrier_epoch};
        inside_region = true;
        {
            const FlushSubnormals flush;
            body(worker, context);
        }
        inside_region = false;
        worker.barrier();
        if (index == 0) {
            share_epoch = worker.share_epoch;
            barrier_epoch = worker.barrier_epoch;
        }
    }

    // A thread left out of a region may look at its signal late: so the number of workers is part of the signal.
    static constexpr uint32_t kCountBits = 9;
    static int workers_of(uint32_t signal) { return static_cast<int>(signal & ((1u << kCountBits) - 1)); }
    static uint32_t next_signal(uint32_t last, int workers) {
        return (((last >> kCountBits) + 1) << kCountBits) | static_cast<uint32_t>(workers);
    }

    // Of the caller and of all other threads; nothing where one of them can't tell.
    std::optional<int64_t> run_delay() const {
        std::optional<int64_t> sum = caller->read();
        for (size_t i = 1; sum && i < own.size(); ++i) {
            const std::optional<int64_t> one = own[i].delay.read();
            sum = one ? std::optional(*sum + *one) : std::nullopt;
        }
        return sum;
    }

    // Before a region: how many workers take part.
    int workers_now() {
        const auto all = static_cast<int>(own.size());
        if (all == 1) return 1;
        thread_local const OpenRunDelay mine;
        if (caller != &mine) governor.forget();
        caller = &mine;
        const int64_t now = now_ns();
        const int ready = all - governor.idle_workers(now, all);
        placement.before_region(ready == all && governor.calm(now));
        return ready;
    }

    // After it. ready: what workers_now() said.
    void tell_governor(int ready) {
        if (own.size() == 1) return;
        const int64_t now = now_ns();
        if (!governor.due(now)) return;
        if (const std::optional<int64_t> delay = run_delay()) governor.report(now, *delay, ready);
    }

    void stop() {
        stopping = true;
        region.raise(next_signal(region.value.load(), 0));
        for (std::thread& thread : threads) thread.join();
    }

    void serve(int index) {
        own[static_cast<size_t>(index)].delay.open();
        placement.introduce(index);
        started.count_down();
        uint32_t seen = 0;
        while (true) {
            const uint32_t current = region.value.load(std::memory_order_acquire);
            if (current == seen) {
                if (region.wait_past(seen, kQuietSpins)) own[static_cast<size_t>(index)].sleeps.fetch_add(1);
                continue;
            }
            seen = current;
            if (stopping) return;
            const int count = workers_of(current);
            if (index < count) take_part(index, count);
        }
    }
};

void Worker::barrier() {
    if (count == 1) return;
    // At a region's first barrier threads may still be waking up, which says nothing about neighbours.
    const int64_t limit = barrier_epoch == team->barrier_epoch ? kLongWakeUp : kLongWait;
    const uint32_t epoch = barrier_epoch++;
    if (team->arrived.fetch_add(1, std::memory_order_acq_rel) == count - 1) {
        team->arrived.store(0, std::memory_order_relaxed);
        team->barrier.raise(epoch + 1);
        return;
    }
    Own& own = team->own[static_cast<size_t>(index)];
    // Most waits end within a few pauses; the clock is read only for the others.
    for (int i = 0; i < 64; ++i) {
        if (team->barrier.value.load(std::memory_order_acquire) != epoch) {
            own.wary_waits = std::max(0, own.wary_waits - 1);
            return;
        }
        pause_briefly();
    }
    const int64_t start = now_ns();
    if (team->barrier.wait_past(epoch, own.wary_waits > 0 ? kDisturbedSpins : kQuietSpins))
        own.sleeps.fetch_add(1, std::memory_order_relaxed);
    const int64_t waited = now_ns() - start;
    if (waited > limit) {
        own.wary_waits = kDisturbedWaits;
        own.long_waits.fetch_add(1, std::memory_order_relaxed);
    } else if (own.wary_waits > 0) {
        --own.wary_waits;
    }
}

static uint64_t whole_range(const Worker::Share& work, uint32_t epoch, int worker, int count) {
    const auto first = static_cast<uint64_t>(work.chunks * worker / count);
    const auto end = static_cast<uint64_t>(work.chunks * (worker + 1) / count);
    return pack_range(epoch, first, end);
}

Worker::Share Worker::begin_share(int64_t total, int64_t grain) {
    grain = std::max<int64_t>(grain, 1);
    const int64_t least = (total + kMostChunks - 2) / (kMostChunks - 1);
    if (least > grain) grain = (least + grain - 1) / grain * grain;
    const int64_t chunks = total > 0 ? (total + grain - 1) / grain : 0;
    if (count > 1) share_epoch = (share_epoch + 1) & kEpochMask;
    return {total, grain, chunks, count == 1 ? 0 : index};
}

bool Worker::next_chunk(Share& work, int64_t& begin, int64_t& end) {
    int64_t chunk = -1;
    if (count == 1) {
        // `victim` counts the chunks done where there is nobody to share with.
        if (work.victim < work.chunks) chunk = work.victim++;
    } else {
        while (chunk < 0) {
            std::atomic<uint64_t>& word = team->remaining[static_cast<size_t>(work.victim)].word;
            uint64_t seen = word.load(std::memory_order_relaxed);
            while (true) {
                const int32_t age = epoch_distance(static_cast<uint32_t>(seen >> 40), share_epoch);
                if (age > 0) return false;
                const uint64_t range = age == 0 ? seen : whole_range(work, share_epoch, work.victim, count);
                const uint64_t first = (range >> 20) & kChunkMask, stop = range & kChunkMask;
                const bool own = work.victim == index, any = first < stop;
                if (!any && age == 0) break;
                const uint64_t left = !any  ? range
                                      : own ? pack_range(share_epoch, first + 1, stop)
                                            : pack_range(share_epoch, first, stop - 1);
                if (word.compare_exchange_weak(seen, left, std::memory_order_relaxed)) {
                    if (any) chunk = static_cast<int64_t>(own ? first : stop - 1);
                    break;
                }
            }
            if (chunk >= 0) break;
            work.victim = (work.victim + 1) % count;
            if (work.victim == index) return false;
        }
    }
    if (chunk < 0) return false;
    begin = chunk * work.grain;
    end = std::min(work.total, begin + work.grain);
    return true;
}

Pool::Pool(int threads) {
    if (threads < 1 || threads > kMostThreads)
        throw std::invalid_argument("a pool has 1 to " + std::to_string(kMostThreads) + " threads, not " +
                                    std::to_string(threads));
    team_ = std::make_unique<Team>(threads);
    try {
        for (int index = 1; index < threads; ++index)
            team_->threads.emplace_back([team = team_.get(), index] { team->serve(index); });
    } catch (const std::system_error&) {
        team_->stop();
        throw;
    }
    team_->started.wait();
}

Pool::~Pool() {
    if (team_->process != getpid()) {
        // The threads stayed with the parent; there is nothing to join, and destroying their handles would abort.
        for (std::thread& thread : team_->threads) thread.detach();
        return;
    }
    team_->stop();
}

int Pool::size() const { return static_cast<int>(team_->own.size()); }

void Pool::run_region(Region region, void* context, int64_t most) {
    if (inside_region) throw std::logic_error("a parallel region can't start another one");
    if (team_->process != getpid())
        throw std::logic_error("a thread pool doesn't survive fork(); make one per process");
    const std::lock_guard<std::mutex> lock(team_->one_region);
    Team& team = *team_;
    team.body = region;
    team.context = context;
    const int ready = team.workers_now();
    const int workers = most < ready ? std::max(static_cast<int>(most), 1) : ready;
    if (workers != team.active) {
        // Words of workers that were left out have aged; an epoch far enough behind would look like one ahead.
        for (Remaining& range : team.remaining) range.word.store(pack_range(team.share_epoch, 0, 0));
        team.active = workers;
    }
    if (workers > 1) team.region.raise(Team::next_signal(team.region.value.load(std::memory_order_relaxed), workers));
    team.take_part(0, workers);
    team.tell_governor(ready);
    team.regions.fetch_add(1, std::memory_order_relaxed);
    if (ready < size()) team.reduced_regions.fetch_add(1, std::memory_order_relaxed);
}

Pool::Statistics Pool::statistics() const {
    Statistics sum{team_->regions.load(), team_->reduced_regions.load(), 0, 0};
    for (const Own& own : team_->own) {
        sum.long_waits += own.long_waits.load();
        sum.sleeps += own.sleeps.load();
    }
    return sum;
}

}  // namespace forge
