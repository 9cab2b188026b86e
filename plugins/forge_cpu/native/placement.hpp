// Keeps the threads of a pool on cores of their own.
//
// For the pool. Left to itself, Linux may wake a worker on the core of the caller that wakes it, and leave both there for
// seconds beside an idle core. So where a pool has as many threads as the process has cores, each worker is bound to one;
// the caller, whose thread isn't the pool's, stays free, and the worker whose core it's found on goes to where it was.
// While other processes want cores too, nobody is bound: the scheduler knows better where there is room.
#pragma once

#include <cstddef>
#include <vector>

#ifdef __linux__
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace forge {

class Placement {
public:
#ifdef __linux__
    // Made by a thread that may run wherever the workers may.
    explicit Placement(int threads) : threads_(static_cast<size_t>(threads)), cores_(static_cast<size_t>(threads)) {
        CPU_ZERO(&allowed_);
        if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0) return;
        set_.assign(threads_.size(), allowed_);
        usable_ = threads > 1 && CPU_COUNT(&allowed_) == threads;
        size_t found = 0;
        for (int core = 0; usable_ && core < CPU_SETSIZE; ++core)
            if (CPU_ISSET(core, &allowed_)) cores_[found++] = core;
    }

    // Called once by every worker but the first, before any region.
    void introduce(int worker) { threads_[static_cast<size_t>(worker)] = static_cast<pid_t>(syscall(SYS_gettid)); }

    // Before each region, by its caller. wanted: whether workers shall be bound in it.
    void before_region(bool wanted) {
        if (!usable_) return;
        if (wanted != bound_) {
            bound_ = wanted;
            for (size_t i = 1; i < threads_.size(); ++i) bind(i, wanted ? only(cores_[i]) : allowed_);
        }
        if (bound_) give_way(sched_getcpu());
    }

private:
    static cpu_set_t only(int core) {
        cpu_set_t set;
        CPU_ZERO(&set);
        CPU_SET(core, &set);
        return set;
    }

    // The worker on the core where the caller is now takes the one where it was.
    void give_way(int here) {
        for (size_t i = 1; here != cores_[0] && i < threads_.size(); ++i) {
            if (cores_[i] != here) continue;
            cores_[i] = cores_[0];
            cores_[0] = here;
            bind(i, only(cores_[i]));
        }
    }

    // What somebody else has set meanwhile is left alone, and so is everything from then on.
    void bind(size_t worker, const cpu_set_t& cores) {
        cpu_set_t now;
        usable_ = usable_ && sched_getaffinity(threads_[worker], sizeof now, &now) == 0 && ours(worker, now) &&
                  sched_setaffinity(threads_[worker], sizeof cores, &cores) == 0;
        if (usable_) set_[worker] = cores;
    }
    bool ours(size_t worker, const cpu_set_t& now) const { return CPU_EQUAL(&now, &set_[worker]) != 0; }

    std::vector<pid_t> threads_;  // by worker
    std::vector<int> cores_;      // by worker; the first one's is where the caller was seen last
    std::vector<cpu_set_t> set_;  // by worker: what it's bound to
    cpu_set_t allowed_;
    bool usable_ = false;
    bool bound_ = false;
#else
    explicit Placement(int) {}
    void introduce(int) {}
    void before_region(bool) {}
#endif
};

}  // namespace forge
