// Memory for packed weights: 64-byte aligned, zeroed, in huge pages where the system grants them.
//
// For Matrix. Matrices are smaller than a huge page in small models, so they share large mappings; a mapping goes back
// to the system with the last matrix in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace forge {

// Throws std::bad_alloc. Freed with the last copy of the pointer.
std::shared_ptr<uint8_t> allocate_weights(size_t bytes);

}  // namespace forge
