// Paged keys and values of one layer: how they lie in memory, and who owns that memory. Knows nothing of sequences.
//
// [block][kv head] is one contiguous piece: keys, key scales (int8 only), values, value scales, each from a cache line.
// Keys lie in groups of up to 16 positions, [group][dim][position], so that one load is one dimension of 16 keys and
// scores come out as a vector, without sums across lanes. Values lie as [position][dim], dims padded to 16.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace forge {

inline constexpr std::int64_t kKeyLanes = 16;

// int8: one float32 scale per position, head and of keys and values; the largest magnitude becomes 127, so that an
// element is off by at most 1/254 of it.
enum class PageFormat { f32, f16, bf16, int8 };

// Sizes in elements unless they say bytes. Made by `page_layout`.
struct PageLayout {
    PageFormat format;
    std::int64_t num_blocks, block_size, kv_heads, k_dim, v_dim;
    std::int64_t key_lanes;   // positions side by side in a group: 16, or the block size where that is smaller
    std::int64_t key_groups;  // groups a block
    std::int64_t v_stride;    // v_dim rounded up to 16
    std::int64_t element_bytes;
    std::int64_t k_scales_at, v_at, v_scales_at, head_bytes;  // bytes: offsets inside a head's piece, and its size

    std::int64_t block_bytes() const { return kv_heads * head_bytes; }
    std::int64_t total_bytes() const { return num_blocks * block_bytes(); }
};

// A layer's memory as kernels see it.
struct PagesView {
    PageLayout layout;
    std::byte* data;

    std::byte* head(std::int64_t block, std::int64_t kv_head) const {
        return data + block * layout.block_bytes() + kv_head * layout.head_bytes;
    }
};

// Throws std::invalid_argument for a name other than f32, f16, bf16, int8.
PageFormat page_format(std::string_view name);
const char* page_format_name(PageFormat format);

// Throws std::invalid_argument where a size isn't positive or the whole overflows 2^62 bytes.
PageLayout page_layout(std::int64_t num_blocks, std::int64_t block_size, std::int64_t kv_heads, std::int64_t k_dim,
                       std::int64_t v_dim, PageFormat format);

// Owns the memory: zeroed, and resident only where it has been written. Throws std::bad_alloc.
class Pages {
public:
    explicit Pages(const PageLayout& layout);
    ~Pages();
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;

    PagesView view() const { return {layout_, data_}; }
    const PageLayout& layout() const { return layout_; }

private:
    PageLayout layout_;
    std::byte* data_;
};

}  // namespace forge
