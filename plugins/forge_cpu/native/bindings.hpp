// What the binding sources share: a pool with its kernels, array types, the pieces of the module.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "isa.hpp"
#include "layout.hpp"
#include "pool.hpp"

namespace forge {

// Arrays in row-major order in host memory. Nothing is converted on the way in: bind with .noconvert(), so that a
// float64 array where float32 is asked for is a TypeError, never a silent copy.
template <class T, int Dimensions>
using Array = nanobind::ndarray<T, nanobind::ndim<Dimensions>, nanobind::c_contig, nanobind::device::cpu>;

// The pool as Python has it: threads, the kernels of one instruction set, and memory for a call's intermediate results.
class BoundPool {
public:
    BoundPool(int threads, const std::string& isa, int activation_bits, float loud)
        : kernels(find_kernels(isa)), pool(threads), rounding{activation_bits / 8, loud} {
        if (activation_bits != 8 && activation_bits != 16) throw std::invalid_argument("activation_bits must be 8 or 16");
        if (!(loud >= 0.f)) throw std::invalid_argument("loud must be at least 0");
    }

    const Kernels& kernels;
    Pool pool;
    const Rounding rounding;  // of activations

    // Memory aligned to 64 that nobody else uses until the lock goes. Take it without the GIL.
    struct Scratch {
        std::unique_lock<std::mutex> lock;
        uint8_t* bytes;
    };
    Scratch scratch(int64_t bytes) {
        std::unique_lock<std::mutex> lock(mutex_);
        if (bytes > size_) {
            memory_ = std::make_unique_for_overwrite<uint8_t[]>(static_cast<size_t>(bytes) + 64);
            size_ = bytes;
        }
        const auto address = (reinterpret_cast<uintptr_t>(memory_.get()) + 63) & ~uintptr_t{63};
        return {std::move(lock), reinterpret_cast<uint8_t*>(address)};
    }

private:
    std::mutex mutex_;
    std::unique_ptr<uint8_t[]> memory_;
    int64_t size_ = 0;
};

void bind_pool(nanobind::module_& m);
void bind_matrix(nanobind::module_& m);
void bind_attention(nanobind::module_& m);
void bind_ops(nanobind::module_& m);
void bind_sample(nanobind::module_& m);
void bind_model(nanobind::module_& m);

}  // namespace forge
