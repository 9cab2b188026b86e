// Decides how many workers a parallel region leaves out because other processes hold cores, and whether others are about.
//
// For the pool, which tells how long its threads have been ready to run without a core. Waits at barriers would say less:
// uneven work looks like a neighbour there, and a neighbour that delays every waking thread by a little looks like none.
// Pure logic: times come from the caller, in nanoseconds of any steady clock.
#pragma once

#include <algorithm>
#include <cstdint>

namespace forge {

class Governor {
public:
    // How many of `threads` workers the region that starts now goes without.
    int idle_workers(int64_t now, int threads) {
        if (now - last_end_ > kWindow) measuring_ = false;  // threads that had nothing to do prove nothing
        if (idle_ > 0 && !probing_ && now >= probe_at_) {
            --idle_;
            probing_ = true;
            measuring_ = false;
        }
        return std::min(idle_, threads - 1);
    }

    // At the end of each region: whether report() wants to be called.
    bool due(int64_t now) {
        last_end_ = now;
        return !measuring_ || now - begin_ >= kWindow;
    }

    // delay: how long the threads have been ready to run without a core, all together, since any time in the past.
    // active: workers of the region that ended now.
    void report(int64_t now, int64_t delay, int active) {
        const int64_t ran = now - begin_, delayed = delay - delay_;
        const bool judges = measuring_;
        begin_ = now;
        delay_ = delay;
        measuring_ = true;
        if (!judges) return;
        const int64_t worth = delayed * std::min(active, kLeastShare);
        if (2 * worth > ran) disturbed_at_ = now;
        if (active < 2) return;
        if (worth > ran) {
            ++idle_;
            hold_ = probing_ ? std::min(hold_ * 2, kLongestHold) : kShortestHold;
            probe_at_ = now + hold_;
        }
        probing_ = false;
    }

    // Whether for long no window came near to leaving a worker out.
    bool calm(int64_t now) const { return now - disturbed_at_ > kCalmAfter; }

    // What has been measured isn't continued: the next report comes from other threads.
    void forget() { measuring_ = false; }

private:
    // Longer than several of a scheduler's time slices, so that one unlucky thread decides nothing.
    static constexpr int64_t kWindow = 30'000'000;
    // Where one delayed thread makes all wait, n workers lose more by a delay of 1/n of the time than by being one fewer.
    // Many workers add up many small delays that no fewer of them would avoid: hence the limit.
    static constexpr int kLeastShare = 4;
    static constexpr int64_t kShortestHold = 50'000'000;
    static constexpr int64_t kLongestHold = 1'600'000'000;
    // So that trials while a neighbour stays aren't calm.
    static constexpr int64_t kCalmAfter = 2'000'000'000;

    int idle_ = 0;
    bool measuring_ = false;  // a window has begun
    bool probing_ = false;    // the window under way is the first since a worker came back
    int64_t begin_ = 0;
    int64_t delay_ = 0;
    int64_t last_end_ = 0;
    int64_t probe_at_ = 0;
    int64_t hold_ = kShortestHold;
    int64_t disturbed_at_ = -kCalmAfter;
};

}  // namespace forge
