// The extension forge_cpu._native: Python's view of pools, packed matrices and the kernels.
//
// Arrays are exchanged by DLPack, so NumPy arrays and torch tensors both do. Every call that computes lets go of the
// GIL; arguments are checked before.
#include <nanobind/nanobind.h>

#include "bindings.hpp"
#include "governor.hpp"

NB_MODULE(_native, m) {
    m.doc() = "Native kernels of the CPU backend";
    forge::bind_pool(m);
    forge::bind_matrix(m);
    forge::bind_attention(m);
    forge::bind_ops(m);
    forge::bind_sample(m);
    forge::bind_model(m);
}
