// Decides how many workers a parallel region leaves out because other processes hold cores.
//
// For the pool, which reports what each region lost in long barrier waits. Pure logic: times come from the caller, in
// nanoseconds of any steady clock.
#pragma once

#include <algorithm>
#include <cstdint>

namespace forge {

class Governor {
public:
    // How many of `threads` workers the region that starts now goes without.
    int idle_workers(int64_t now, int threads) {
        if (idle_ > 0 && now >= probe_at_) {
            --idle_;
            probing_ = true;
            ran_ = lost_ = 0;
        }
        return std::min(idle_, threads - 1);
    }

    // A region that ran from start to end on `active` workers, which lost `lost` in long waits, summed over them.
    void report(int64_t start, int64_t end, int active, int64_t lost) {
        if (active < 2) return;
        ran_ += end - start;
        lost_ += lost;
        if (ran_ < kWindow) return;
        if (lost_ * kLeastShare > ran_) {
            ++idle_;
            hold_ = probing_ ? std::min(hold_ * 2, kLongestHold) : kShortestHold;
            probe_at_ = end + hold_;
        }
        probing_ = false;
        ran_ = lost_ = 0;
    }

private:
    // Windows are longer than a scheduler's time slice, so that one unlucky wait decides nothing.
    static constexpr int64_t kWindow = 20'000'000;
    // A window is disturbed when its waits add up to a quarter of its length: work sharing keeps them far below it on
    // a quiet machine, a worker that has half a core loses more.
    static constexpr int64_t kLeastShare = 4;
    static constexpr int64_t kShortestHold = 100'000'000;
    static constexpr int64_t kLongestHold = 1'600'000'000;

    int idle_ = 0;
    bool probing_ = false;  // the window under way is the first since a worker came back
    int64_t probe_at_ = 0;
    int64_t hold_ = kShortestHold;
    int64_t ran_ = 0;
    int64_t lost_ = 0;
};

}  // namespace forge
