#include "pages.hpp"

#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#define FORGE_HAS_MMAP 1
#endif

namespace forge {

namespace {

constexpr std::int64_t kCacheLine = 64;
constexpr std::int64_t kMostBytes = std::int64_t{1} << 62;

constexpr std::int64_t round_up(std::int64_t value, std::int64_t to) { return (value + to - 1) / to * to; }

std::int64_t element_bytes(PageFormat format) {
    switch (format) {
        case PageFormat::f32: return 4;
        case PageFormat::f16:
        case PageFormat::bf16: return 2;
        case PageFormat::int8: return 1;
    }
    throw std::invalid_argument("unknown page format");
}

struct NamedFormat {
    const char* name;
    PageFormat format;
};
constexpr NamedFormat kFormats[] = {
    {"f32", PageFormat::f32}, {"f16", PageFormat::f16}, {"bf16", PageFormat::bf16}, {"int8", PageFormat::int8}};

}  // namespace

PageFormat page_format(std::string_view name) {
    for (const auto& known : kFormats) {
        if (name == known.name) return known.format;
    }
    throw std::invalid_argument("unknown page format '" + std::string(name) + "': one of f32, f16, bf16, int8");
}

const char* page_format_name(PageFormat format) {
    for (const auto& known : kFormats) {
        if (format == known.format) return known.name;
    }
    return "?";
}

PageLayout page_layout(std::int64_t num_blocks, std::int64_t block_size, std::int64_t kv_heads, std::int64_t k_dim,
                       std::int64_t v_dim, PageFormat format) {
    const std::int64_t limit = std::int64_t{1} << 31;
    for (const std::int64_t size : {num_blocks, block_size, kv_heads, k_dim, v_dim}) {
        if (size < 1 || size >= limit) {
            throw std::invalid_argument("sizes of pages must be between 1 and 2^31, one is " + std::to_string(size));
        }
    }
    PageLayout layout{};
    layout.format = format;
    layout.num_blocks = num_blocks;
    layout.block_size = block_size;
    layout.kv_heads = kv_heads;
    layout.k_dim = k_dim;
    layout.v_dim = v_dim;
    layout.key_lanes = block_size < kKeyLanes ? block_size : kKeyLanes;
    layout.key_groups = (block_size + layout.key_lanes - 1) / layout.key_lanes;
    layout.v_stride = round_up(v_dim, 16);
    layout.element_bytes = element_bytes(format);
    const bool scaled = format == PageFormat::int8;
    const std::int64_t lanes = layout.key_groups * layout.key_lanes;
    // Floating point, to notice sizes that integers would wrap around at.
    const double piece = static_cast<double>(lanes) * static_cast<double>(k_dim + layout.v_stride + 2) * 4 + 256;
    if (piece * static_cast<double>(kv_heads) * static_cast<double>(num_blocks) > static_cast<double>(kMostBytes)) {
        throw std::invalid_argument("pages larger than the address space");
    }
    layout.k_scales_at = round_up(lanes * k_dim * layout.element_bytes, kCacheLine);
    layout.v_at = layout.k_scales_at + (scaled ? round_up(lanes * 4, kCacheLine) : 0);
    layout.v_scales_at = layout.v_at + round_up(block_size * layout.v_stride * layout.element_bytes, kCacheLine);
    layout.head_bytes = layout.v_scales_at + (scaled ? round_up(lanes * 4, kCacheLine) : 0);
    return layout;
}

#ifdef FORGE_HAS_MMAP

Pages::Pages(const PageLayout& layout) : layout_(layout) {
    // NORESERVE: what a KV cache might grow to may exceed what is free at the moment, as with calloc.
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
#ifdef MAP_NORESERVE
    flags |= MAP_NORESERVE;
#endif
    void* memory =
        mmap(nullptr, static_cast<std::size_t>(layout.total_bytes()), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<std::byte*>(memory);
}

Pages::~Pages() { munmap(data_, static_cast<std::size_t>(layout_.total_bytes())); }

#else

Pages::Pages(const PageLayout& layout) : layout_(layout) {
    // A line more than needed and the pointer in front of it: calloc aligns to 16 only.
    const auto bytes = static_cast<std::size_t>(layout.total_bytes());
    void* memory = std::calloc(bytes + 2 * kCacheLine, 1);
    if (memory == nullptr) throw std::bad_alloc();
    auto address = reinterpret_cast<std::uintptr_t>(memory);
    address = (address + 2 * kCacheLine - 1) / kCacheLine * kCacheLine;
    data_ = reinterpret_cast<std::byte*>(address);
    reinterpret_cast<void**>(data_)[-1] = memory;
}

Pages::~Pages() { std::free(reinterpret_cast<void**>(data_)[-1]); }

#endif

}  // namespace forge
