// Large anonymous mappings, cut into weights.
#include "memory.hpp"

#include <sys/mman.h>

#include <mutex>
#include <new>

namespace forge {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kMapping = size_t{64} << 20;   // address space, not memory: untouched pages cost nothing
constexpr size_t kMostBytes = size_t{1} << 46;  // what fits any address space, so that sums can't overflow

size_t round_up(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

class Mapping {
public:
    explicit Mapping(size_t bytes) : mapped_(bytes + kHugePage), size_(bytes) {
        base_ = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base_ == MAP_FAILED) throw std::bad_alloc();
        start_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(base_), kHugePage));
#ifdef MADV_HUGEPAGE
        madvise(start_, bytes, MADV_HUGEPAGE);  // advice: where it is refused, small pages do
#endif
    }
    ~Mapping() { munmap(base_, mapped_); }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    // Null when it doesn't fit any more.
    uint8_t* take(size_t bytes) {
        if (bytes > size_ - used_) return nullptr;
        uint8_t* taken = start_ + used_;
        used_ += bytes;
        return taken;
    }

private:
    void* base_;
    uint8_t* start_;
    size_t mapped_, size_, used_ = 0;
};

}  // namespace

std::shared_ptr<uint8_t> allocate_weights(size_t bytes) {
    static std::mutex mutex;
    static std::weak_ptr<Mapping> latest;
    if (bytes > kMostBytes) throw std::bad_alloc();
    bytes = round_up(bytes, 64);
    const std::lock_guard<std::mutex> lock(mutex);
    std::shared_ptr<Mapping> mapping = latest.lock();
    uint8_t* taken = mapping ? mapping->take(bytes) : nullptr;
    if (taken == nullptr) {
        mapping = std::make_shared<Mapping>(bytes > kMapping ? round_up(bytes, kHugePage) : kMapping);
        taken = mapping->take(bytes);
        latest = mapping;
    }
    return {mapping, taken};
}

}  // namespace forge
