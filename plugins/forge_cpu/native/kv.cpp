// Writing keys and values into pages and reading whole blocks back; compiled once per instruction set.

#include "attention.hpp"
#include "operation_kernels.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

namespace {

constexpr float kLargestF16 = 65504.f;

FORGE_INLINE f32x16 load_some(const float* p, int count) { return count == 16 ? load(p) : load_partial(p, count); }

// The factor that makes a row's largest magnitude 127, and its inverse, the scale; 1 and 0 for zeros and NaNs.
struct Int8Scale {
    float factor, scale;
};

FORGE_INLINE Int8Scale int8_scale(const float* x, int64_t dim) {
    f32x16 most = zero();
    for (int64_t i = 0; i < dim; i += 16) most = max(most, abs(load_some(x + i, dim - i < 16 ? int(dim - i) : 16)));
    const float largest = reduce_max(most);
    if (!(largest > 0) || !(largest < __builtin_huge_valf())) return {1.f, 0.f};
    const float scale = largest / 127.f;
    // Nearly subnormal rows: their inverse would overflow.
    return scale > 1e-30f ? Int8Scale{1.f / scale, scale} : Int8Scale{1.f, 0.f};
}

// Sixteen elements as stored.
struct Packed {
    alignas(64) std::byte bytes[64];
};

// Values beyond float16's range become its largest: an infinity would make all later rows' attention not a number.
FORGE_INLINE void pack(PageFormat format, f32x16 x, float factor, Packed& out) {
    switch (format) {
        case PageFormat::f32: store(reinterpret_cast<float*>(out.bytes), x); break;
        case PageFormat::f16:
            store_f16(reinterpret_cast<uint16_t*>(out.bytes), min(max(x, splat(-kLargestF16)), splat(kLargestF16)));
            break;
        case PageFormat::bf16: store_bf16(reinterpret_cast<uint16_t*>(out.bytes), x); break;
        case PageFormat::int8: {
            const f32x16 scaled = min(max(x * splat(factor), splat(-127.f)), splat(127.f));
            store_i8(reinterpret_cast<int8_t*>(out.bytes), round_to_int(scaled));
            break;
        }
    }
}

// `count` elements of `bytes` bytes each, `step` bytes apart.
template <int Bytes>
FORGE_INLINE void scatter(const Packed& from, int count, std::byte* to, int64_t step) {
    for (int i = 0; i < count; ++i) __builtin_memcpy(to + i * step, from.bytes + i * Bytes, Bytes);
}

FORGE_INLINE void scatter(int64_t bytes, const Packed& from, int count, std::byte* to, int64_t step) {
    if (bytes == 1) scatter<1>(from, count, to, step);
    if (bytes == 2) scatter<2>(from, count, to, step);
    if (bytes == 4) scatter<4>(from, count, to, step);
}

FORGE_INLINE f32x16 unpack(PageFormat format, const Packed& from, float scale) {
    switch (format) {
        case PageFormat::f32: return load(reinterpret_cast<const float*>(from.bytes));
        case PageFormat::f16: return load_f16(reinterpret_cast<const uint16_t*>(from.bytes));
        case PageFormat::bf16: return load_bf16(reinterpret_cast<const uint16_t*>(from.bytes));
        case PageFormat::int8: return load_i8(reinterpret_cast<const int8_t*>(from.bytes)) * splat(scale);
    }
    return zero();
}

// Where the key at an offset of a block begins inside a head's piece; its next dim is `key_lanes` elements further.
FORGE_INLINE int64_t key_at(const PageLayout& l, int64_t offset) {
    return (offset / l.key_lanes * l.k_dim * l.key_lanes + offset % l.key_lanes) * l.element_bytes;
}

void write_head(const PageLayout& l, std::byte* head, int64_t offset, const float* k, const float* v) {
    const bool scaled = l.format == PageFormat::int8;
    const int64_t bytes = l.element_bytes;
    const Int8Scale ks = scaled ? int8_scale(k, l.k_dim) : Int8Scale{1.f, 1.f};
    const Int8Scale vs = scaled ? int8_scale(v, l.v_dim) : Int8Scale{1.f, 1.f};
    Packed packed;
    std::byte* key = head + key_at(l, offset);
    for (int64_t d = 0; d < l.k_dim; d += 16) {
        const int count = l.k_dim - d < 16 ? static_cast<int>(l.k_dim - d) : 16;
        pack(l.format, load_some(k + d, count), ks.factor, packed);
        scatter(bytes, packed, count, key + d * l.key_lanes * bytes, l.key_lanes * bytes);
    }
    std::byte* value = head + l.v_at + offset * l.v_stride * bytes;
    for (int64_t d = 0; d < l.v_dim; d += 16) {
        const int count = l.v_dim - d < 16 ? static_cast<int>(l.v_dim - d) : 16;
        pack(l.format, load_some(v + d, count), vs.factor, packed);
        __builtin_memcpy(value + d * bytes, packed.bytes, static_cast<std::size_t>(16 * bytes));
    }
    if (scaled) {
        reinterpret_cast<float*>(head + l.k_scales_at)[offset] = ks.scale;
        reinterpret_cast<float*>(head + l.v_scales_at)[offset] = vs.scale;
    }
}

void read_head(const PageLayout& l, const std::byte* head, int64_t offset, float* k, float* v) {
    const bool scaled = l.format == PageFormat::int8;
    const int64_t bytes = l.element_bytes;
    const float k_scale = scaled ? reinterpret_cast<const float*>(head + l.k_scales_at)[offset] : 1.f;
    const float v_scale = scaled ? reinterpret_cast<const float*>(head + l.v_scales_at)[offset] : 1.f;
    Packed packed{};
    const std::byte* key = head + key_at(l, offset);
    for (int64_t d = 0; d < l.k_dim; d += 16) {
        const int count = l.k_dim - d < 16 ? static_cast<int>(l.k_dim - d) : 16;
        for (int i = 0; i < count; ++i)
            __builtin_memcpy(packed.bytes + i * bytes, key + (d + i) * l.key_lanes * bytes,
                             static_cast<std::size_t>(bytes));
        store_partial(k + d, unpack(l.format, packed, k_scale), count);
    }
    const std::byte* value = head + l.v_at + offset * l.v_stride * bytes;
    for (int64_t d = 0; d < l.v_dim; d += 16) {
        const int count = l.v_dim - d < 16 ? static_cast<int>(l.v_dim - d) : 16;
        __builtin_memcpy(packed.bytes, value + d * bytes, static_cast<std::size_t>(16 * bytes));
        store_partial(v + d, unpack(l.format, packed, v_scale), count);
    }
}

}  // namespace

void kv_write(const KvWriteCall& call, int64_t begin, int64_t end) {
    const PageLayout& l = call.pages.layout;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t block = call.slots[row] / l.block_size, offset = call.slots[row] % l.block_size;
        for (int64_t head = 0; head < l.kv_heads; ++head)
            write_head(l, call.pages.head(block, head), offset, call.k + row * call.k_stride + head * l.k_dim,
                       call.v + row * call.v_stride + head * l.v_dim);
    }
}

void kv_read(const KvReadCall& call, int64_t begin, int64_t end) {
    const PageLayout& l = call.pages.layout;
    for (int64_t i = begin; i < end; ++i) {
        for (int64_t head = 0; head < l.kv_heads; ++head) {
            const std::byte* piece = call.pages.head(call.blocks[i], head);
            for (int64_t offset = 0; offset < l.block_size; ++offset) {
                const int64_t row = (i * l.block_size + offset) * l.kv_heads + head;
                read_head(l, piece, offset, call.k + row * l.k_dim, call.v + row * l.v_dim);
            }
        }
    }
}

}  // namespace forge::FORGE_ISA
