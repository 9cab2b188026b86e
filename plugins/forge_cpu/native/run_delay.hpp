// How long a thread has been ready to run without getting a core, as Linux counts it.
//
// For the pool's governor. https://docs.kernel.org/scheduler/sched-stats.html: the second number of a task's schedstat.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <optional>

#ifdef __linux__
#include <fcntl.h>
#include <unistd.h>
#endif

namespace forge {

// One thread's counter, which the thread itself opens and any thread reads.
class RunDelay {
public:
    RunDelay() = default;
    RunDelay(const RunDelay&) = delete;
    RunDelay& operator=(const RunDelay&) = delete;

    // Nanoseconds since the thread began; nothing before open(), or where the system doesn't count them.
    std::optional<int64_t> read() const {
#ifdef __linux__
        char text[96];
        const int file = file_.load(std::memory_order_acquire);
        const ssize_t size = file < 0 ? 0 : pread(file, text, sizeof text - 1, 0);
        if (size <= 0) return std::nullopt;
        text[size] = 0;
        char *first, *second;
        std::strtoll(text, &first, 10);
        const int64_t delay = std::strtoll(first, &second, 10);
        if (first == text || second == first) return std::nullopt;
        return delay;
#else
        return std::nullopt;
#endif
    }

#ifdef __linux__
    void open() { file_.store(::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC), std::memory_order_release); }
    ~RunDelay() {
        const int file = file_.load(std::memory_order_relaxed);
        if (file >= 0) close(file);
    }

private:
    std::atomic<int> file_{-1};
#else
    void open() {}
#endif
};

// That of the thread that makes it.
class OpenRunDelay : public RunDelay {
public:
    OpenRunDelay() { open(); }
};

}  // namespace forge
