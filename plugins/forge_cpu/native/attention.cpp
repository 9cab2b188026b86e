// Attention's units of work and their merging; compiled once per instruction set. See attention.hpp.

#include "attention_pairs.hpp"
#include "attention_tiles.hpp"
#include "operation_kernels.hpp"
#include "pool.hpp"

namespace forge::FORGE_ISA {

namespace {

// After the weighted values of a row: its largest score, and the sum of its exponentials.
constexpr int64_t kRowTail = 16;

// A worker's memory.
struct Scratch {
    float* scores;    // [kMostRows][kScoreStride]
    float* partial;   // [kMostRows] rows of one partition
    float* running;   // [kAttentionRows] rows, merged so far
    float* queries;   // the tile's queries, [dim][R] for every R rows that are taken together
    std::byte* keys;  // copies of keys and values that don't lie in groups of 16, as they're stored
    std::byte* values;
    float* key_scales;
    float* value_scales;
    std::byte* pair_keys;  // a partition, and rows' weights, for products of pairs
    std::byte* pair_values;
    std::byte* pair_weights;
};

struct Sizes {
    int64_t scores, partial, running, queries, keys, values, scales, pair_keys, pair_values, pair_weights, total;
};

constexpr int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }

Sizes scratch_sizes(const AttentionShape& shape, const PageLayout& layout) {
    const int64_t row = layout.v_stride + kRowTail;
    const bool copies = layout.block_size % 16 != 0;
    Sizes s{};
    s.scores = lines(kMostRows * kScoreStride * 4);
    s.partial = lines(kMostRows * row * 4);
    s.running = lines(kAttentionRows * row * 4);
    s.queries = lines(kAttentionRows * shape.k_dim * 4);
    s.keys = copies ? lines(kPartition * layout.k_dim * layout.element_bytes) : 0;
    s.values = copies ? lines(kPartition * layout.v_stride * layout.element_bytes) : 0;
    s.scales = copies ? lines(kPartition * 4) : 0;
#if defined(FORGE_HAS_PAIR_PRODUCTS)
    if (takes_pairs(shape, layout.format, true)) {
        s.pair_keys = kPartition * lines(layout.k_dim * 2);
        s.pair_values = kPartition * layout.v_stride * 2;
        s.pair_weights = kMostRows * kWeightBytes;
    }
#endif
    s.total = s.scores + s.partial + s.running + s.queries + s.keys + s.values + 2 * s.scales + s.pair_keys +
              s.pair_values + s.pair_weights;
    return s;
}

Scratch carve(std::byte* at, const Sizes& sizes) {
    auto take = [&at](int64_t bytes) {
        std::byte* piece = at;
        at += bytes;
        return piece;
    };
    auto floats = [&take](int64_t bytes) { return reinterpret_cast<float*>(take(bytes)); };
    Scratch s;
    s.scores = floats(sizes.scores);
    s.partial = floats(sizes.partial);
    s.running = floats(sizes.running);
    s.queries = floats(sizes.queries);
    s.keys = take(sizes.keys);
    s.values = take(sizes.values);
    s.key_scales = floats(sizes.scales);
    s.value_scales = floats(sizes.scales);
    s.pair_keys = take(sizes.pair_keys);
    s.pair_values = take(sizes.pair_values);
    s.pair_weights = take(sizes.pair_weights);
    return s;
}

// How many of the remaining rows to take together.
constexpr int rows_together(int64_t left) {
    if (kMostRows >= 12 && left >= 12) return 12;
    if (kMostRows >= 8 && left >= 8) return 8;
    if (kMostRows >= 6 && left >= 6) return 6;
    return left >= 4 ? 4 : static_cast<int>(left);
}

// Groups that can't be read in place, because blocks are too small or don't end at multiples of 16, are copied.
void copy_group(const PagesView& pages, const int64_t* blocks, int64_t kv_head, int64_t position, int64_t last,
                int group, const Scratch& scratch, Partition& part) {
    const PageLayout& l = pages.layout;
    const int64_t bytes = l.element_bytes;
    std::byte* keys = scratch.keys + group * 16 * l.k_dim * bytes;
    std::byte* values = scratch.values + group * 16 * l.v_stride * bytes;
    for (int64_t lane = 0; lane < 16; ++lane) {
        const int64_t from = position + lane < last ? position + lane : last;  // lanes past the end repeat the last key
        const int64_t offset = from % l.block_size;
        const std::byte* head = pages.head(blocks[from / l.block_size], kv_head);
        const std::byte* key =
            head + (offset / l.key_lanes * l.k_dim * l.key_lanes + offset % l.key_lanes) * bytes;
        std::byte* to = keys + lane * bytes;
        for (int64_t d = 0; d < l.k_dim; ++d)
            for (int64_t i = 0; i < bytes; ++i) to[d * 16 * bytes + i] = key[d * l.key_lanes * bytes + i];
        __builtin_memcpy(values + lane * l.v_stride * bytes, head + l.v_at + offset * l.v_stride * bytes,
                         static_cast<std::size_t>(l.v_stride * bytes));
        if (l.format == PageFormat::int8) {
            scratch.key_scales[group * 16 + lane] = reinterpret_cast<const float*>(head + l.k_scales_at)[offset];
            scratch.value_scales[group * 16 + lane] = reinterpret_cast<const float*>(head + l.v_scales_at)[offset];
        }
    }
    part.keys[group] = keys;
    part.values[group] = values;
    part.key_scales[group] = scratch.key_scales + group * 16;
    part.value_scales[group] = scratch.value_scales + group * 16;
}

// Find groups [first, last) of a partition for a sequence whose last visible position is `end - 1`. whole: all 16
// values of a group will be read, visible or not.
void locate(const PagesView& pages, const int64_t* blocks, int64_t kv_head, int64_t part_begin, int first, int last,
            int64_t end, bool whole, const Scratch& scratch, Partition& part) {
    const PageLayout& l = pages.layout;
    for (int group = first; group < last; ++group) {
        const int64_t position = part_begin + group * 16;
        const int64_t offset = position % l.block_size;
        const int64_t needed = whole || end - position > 16 ? 16 : end - position;
        if (l.key_lanes != 16 || offset % 16 != 0 || offset + needed > l.block_size) {
            copy_group(pages, blocks, kv_head, position, end - 1, group, scratch, part);
            continue;
        }
        const std::byte* head = pages.head(blocks[position / l.block_size], kv_head);
        part.keys[group] = head + offset * l.k_dim * l.element_bytes;
        part.values[group] = head + l.v_at + offset * l.v_stride * l.element_bytes;
        part.key_scales[group] = reinterpret_cast<const float*>(head + l.k_scales_at) + offset;
        part.value_scales[group] = reinterpret_cast<const float*>(head + l.v_scales_at) + offset;
    }
}

// into and from: rows of [values, largest, total]. The order of merging is the caller's: ascending partitions.
void merge_row(float* into, const float* from, int64_t stride) {
    const float before = into[stride], added = from[stride];
    if (!(added > kNothing)) return;
    if (!(before > kNothing)) {
        for (int64_t i = 0; i < stride + kRowTail; i += 16) store(into + i, load(from + i));
        return;
    }
    const float largest = before > added ? before : added;
    const f32x16 a = exp(splat(before - largest)), b = exp(splat(added - largest));
    for (int64_t i = 0; i < stride; i += 16) store(into + i, fma(load(into + i), a, load(from + i) * b));
    const f32x16 total = fma(splat(into[stride + 1]), a, splat(from[stride + 1]) * b);
    into[stride] = largest;
    store_partial(into + stride + 1, total, 1);
}

// A row's result; not a number where no score was one.
void finish_row(const float* row, int64_t stride, int64_t v_dim, float* out) {
    const f32x16 inverse = splat(1.f / row[stride + 1]);
    int64_t i = 0;
    for (; i + 16 <= v_dim; i += 16) store(out + i, load(row + i) * inverse);
    if (i < v_dim) store_partial(out + i, load(row + i) * inverse, static_cast<int>(v_dim - i));
}

// R rows over one partition → rows of [values, largest, total].
template <class Stored, int R>
void attend_rows(const float* q, const Partition& part, const Range* seen, int64_t k_dim, int64_t stride,
                 float* scores, float* out) {
    const int64_t row_floats = stride + kRowTail;
    int begin = kPartition, end = 0;
    Range common{0, kPartition};
    for (int r = 0; r < R; ++r) {
        if (seen[r].begin < seen[r].end) {
            begin = seen[r].begin < begin ? seen[r].begin : begin;
            end = seen[r].end > end ? seen[r].end : end;
        }
        common.begin = seen[r].begin > common.begin ? seen[r].begin : common.begin;
        common.end = seen[r].end < common.end ? seen[r].end : common.end;
    }
    const int first = begin / 16, last = (end + 15) / 16;
    if (begin < end) score_rows<Stored, R>(q, part, first, last, k_dim, scores);
    for (int r = 0; r < R; ++r) {
        float* row = out + r * row_floats;
        for (int64_t i = 0; i < row_floats; i += 16) store(row + i, zero());
        row[stride] = soften<Stored>(scores + r * kScoreStride, part, seen[r], first, last, row + stride + 1);
    }
    // Keys that only some of the rows see are added row by row: no row touches a value that it may not see, not even
    // with weight 0, since that value might be infinite.
    if (common.begin >= common.end) {
        for (int r = 0; r < R; ++r)
            weigh_rows<Stored, 1>(scores + r * kScoreStride, part, seen[r], stride, out + r * row_floats, row_floats);
        return;
    }
    for (int r = 0; r < R; ++r)
        weigh_rows<Stored, 1>(scores + r * kScoreStride, part, {seen[r].begin, common.begin}, stride,
                              out + r * row_floats, row_floats);
    weigh_rows<Stored, R>(scores, part, common, stride, out, row_floats);
    for (int r = 0; r < R; ++r)
        weigh_rows<Stored, 1>(scores + r * kScoreStride, part, {common.end, seen[r].end}, stride,
                              out + r * row_floats, row_floats);
}

template <class Stored>
void attend(int rows, const float* q, const Partition& part, const Range* seen, int64_t k_dim, int64_t stride,
            float* scores, float* out) {
    switch (rows) {
        case 1: return attend_rows<Stored, 1>(q, part, seen, k_dim, stride, scores, out);
        case 2: return attend_rows<Stored, 2>(q, part, seen, k_dim, stride, scores, out);
        case 3: return attend_rows<Stored, 3>(q, part, seen, k_dim, stride, scores, out);
        case 4: return attend_rows<Stored, 4>(q, part, seen, k_dim, stride, scores, out);
        default:
            if constexpr (kMostRows >= 12) {
                if (rows == 6) return attend_rows<Stored, 6>(q, part, seen, k_dim, stride, scores, out);
                if (rows == 8) return attend_rows<Stored, 8>(q, part, seen, k_dim, stride, scores, out);
                return attend_rows<Stored, 12>(q, part, seen, k_dim, stride, scores, out);
            }
    }
}

// The unit's queries times the scale, [dim][R] for every R rows that are taken together.
void pack_queries(const AttentionCall& call, const AttentionUnit& unit, float* packed) {
    const AttentionShape& shape = call.shape;
    const int64_t rows = unit.positions * unit.heads;
    for (int64_t first = 0; first < rows;) {
        const int together = rows_together(rows - first);
        for (int r = 0; r < together; ++r) {
            const int64_t row = first + r;
            const float* q = call.q + (unit.first_row + row / unit.heads) * call.q_stride +
                             (unit.first_head + row % unit.heads) * shape.k_dim;
            float* to = packed + first * shape.k_dim + r;
            for (int64_t d = 0; d < shape.k_dim; ++d) to[d * together] = q[d] * shape.scale;
        }
        first += together;
    }
}

#if defined(FORGE_HAS_PAIR_PRODUCTS)
uint32_t round_bf16(float x) {
    const auto bits = peek<uint32_t>(&x);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// The same in pairs of dims, [k_dim / 2][R].
void pack_query_pairs(const AttentionCall& call, const AttentionUnit& unit, uint32_t* packed) {
    const AttentionShape& shape = call.shape;
    const int64_t rows = unit.positions * unit.heads, pairs = shape.k_dim / 2;
    for (int64_t first = 0; first < rows;) {
        const int together = rows_together(rows - first);
        for (int r = 0; r < together; ++r) {
            const int64_t row = first + r;
            const float* q = call.q + (unit.first_row + row / unit.heads) * call.q_stride +
                             (unit.first_head + row % unit.heads) * shape.k_dim;
            uint32_t* to = packed + first * pairs + r;
            for (int64_t i = 0; i < pairs; ++i)
                to[i * together] = round_bf16(q[2 * i] * shape.scale) | round_bf16(q[2 * i + 1] * shape.scale) << 16;
        }
        first += together;
    }
}

template <class From>
void attend_in_pairs(int rows, const uint32_t* q, const Partition& part, const From& from, const Range* seen,
                     const Scratch& s, float* out) {
    switch (rows) {
        case 1: return attend_pairs<1>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
        case 2: return attend_pairs<2>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
        case 3: return attend_pairs<3>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
        case 4: return attend_pairs<4>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
        case 6: return attend_pairs<6>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
        case 8: return attend_pairs<8>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
        default: return attend_pairs<12>(q, part, from, seen, kRowTail, s.scores, s.pair_weights, out);
    }
}
#endif

Range seen_by(int64_t position, int64_t window, int64_t part_begin) {
    const int64_t end = position + 1 - part_begin;
    const int64_t begin = window > 0 ? end - window : 0;
    Range seen{begin > 0 ? static_cast<int>(begin < kPartition ? begin : kPartition) : 0,
               end < kPartition ? static_cast<int>(end > 0 ? end : 0) : static_cast<int>(kPartition)};
    return seen.begin < seen.end ? seen : Range{0, 0};
}

template <class Stored>
void run_unit(const AttentionCall& call, const AttentionUnit& unit, const Scratch& scratch) {
    const AttentionShape& shape = call.shape;
    const PageLayout& layout = call.pages.layout;
    const int64_t stride = layout.v_stride, row_floats = stride + kRowTail;
    const int64_t rows = unit.positions * unit.heads;
    const int64_t kv_head = unit.first_head / (shape.heads / shape.kv_heads);
    const int64_t* blocks = call.block_table + unit.span * call.table_stride;
    const int64_t end = unit.first_position + unit.positions;
#if defined(FORGE_HAS_PAIR_PRODUCTS)
    const bool in_pairs = takes_pairs(shape, layout.format, call.rounded);
    auto* query_pairs = reinterpret_cast<uint32_t*>(scratch.queries);
    if (in_pairs)
        pack_query_pairs(call, unit, query_pairs);
    else
#else
    constexpr bool in_pairs = false;
#endif
        pack_queries(call, unit, scratch.queries);
    for (int64_t row = 0; row < rows; ++row) scratch.running[row * row_floats + stride] = kNothing;
    for (int64_t p = unit.first_part; p < unit.last_part; ++p) {
        const int64_t part_begin = p * kPartition;
        // Together the rows see from where the first one's window begins to where the last position is.
        const int64_t begin = shape.window > 0 ? unit.first_position + 1 - shape.window - part_begin : 0;
        const int64_t stop = end - part_begin < kPartition ? end - part_begin : kPartition;
        Partition part;
        const int first = begin > 0 ? static_cast<int>(begin / 16) : 0, last = static_cast<int>((stop + 15) / 16);
        locate(call.pages, blocks, kv_head, part_begin, first, last, end, in_pairs, scratch, part);
#if defined(FORGE_HAS_PAIR_PRODUCTS)
        const PairPartition pairs{scratch.pair_keys, scratch.pair_values};
        const FromPages from_pages{part, shape.k_dim, stride, first, last};
        const FromBuffer from_buffer{pairs, shape.k_dim, stride};
        const bool buffers = in_pairs && rows_together(rows) < rows;
        if (buffers) make_pairs(part, first, last, shape.k_dim, stride, pairs);
#endif
        for (int64_t row = 0; row < rows;) {
            const int together = rows_together(rows - row);
            Range seen[kMostRows];
            for (int r = 0; r < together; ++r)
                seen[r] = seen_by(unit.first_position + (row + r) / unit.heads, shape.window, part_begin);
            const bool split = unit.partials >= 0;
            float* out = split ? call.partials + unit.partials + ((p - unit.tile_part) * rows + row) * row_floats
                               : scratch.partial;
#if defined(FORGE_HAS_PAIR_PRODUCTS)
            const uint32_t* q = query_pairs + row * (shape.k_dim / 2);
            if (buffers)
                attend_in_pairs(together, q, part, from_buffer, seen, scratch, out);
            else if (in_pairs)
                attend_in_pairs(together, q, part, from_pages, seen, scratch, out);
            else
#endif
                attend<Stored>(together, scratch.queries + row * shape.k_dim, part, seen, shape.k_dim, stride,
                               scratch.scores, out);
            for (int r = 0; !split && r < together; ++r)
                merge_row(scratch.running + (row + r) * row_floats, out + r * row_floats, stride);
            row += together;
        }
    }
}

// Where row `row` of a tile belongs.
float* out_row(const AttentionCall& call, const AttentionUnit& unit, int64_t row) {
    return call.out + (unit.first_row + row / unit.heads) * call.out_stride +
           (unit.first_head + row % unit.heads) * call.shape.v_dim;
}

void run_units(const AttentionCall& call, int64_t begin, int64_t end, const Scratch& scratch) {
    const int64_t stride = call.pages.layout.v_stride, row_floats = stride + kRowTail;
    for (int64_t i = begin; i < end; ++i) {
        const AttentionUnit& unit = call.units[i];
        switch (call.pages.layout.format) {
            case PageFormat::f32: run_unit<StoredF32>(call, unit, scratch); break;
            case PageFormat::f16: run_unit<StoredF16>(call, unit, scratch); break;
            case PageFormat::bf16: run_unit<StoredBf16>(call, unit, scratch); break;
            case PageFormat::int8: run_unit<StoredInt8>(call, unit, scratch); break;
        }
        for (int64_t row = 0; unit.partials < 0 && row < unit.positions * unit.heads; ++row)
            finish_row(scratch.running + row * row_floats, stride, call.shape.v_dim, out_row(call, unit, row));
    }
}

// The partials of one row of a split tile, in ascending order.
void merge_split_row(const AttentionCall& call, const AttentionUnit& tile, int64_t row, float* running) {
    const int64_t stride = call.pages.layout.v_stride, row_floats = stride + kRowTail;
    const int64_t rows = tile.positions * tile.heads;
    running[stride] = kNothing;
    for (int64_t p = 0; p < tile.last_part - tile.first_part; ++p)
        merge_row(running, call.partials + tile.partials + (p * rows + row) * row_floats, stride);
    finish_row(running, stride, call.shape.v_dim, out_row(call, tile, row));
}

}  // namespace

int64_t attention_scratch(const AttentionShape& shape, const PageLayout& layout) {
    return scratch_sizes(shape, layout).total;
}

void attention(Worker& worker, const AttentionCall& call) {
    const Sizes sizes = scratch_sizes(call.shape, call.pages.layout);
    const Scratch scratch = carve(call.scratch + worker.index * sizes.total, sizes);
    worker.share(call.unit_count, 1, [&](int64_t begin, int64_t end) { run_units(call, begin, end, scratch); });
    if (call.merge_count == 0) return;
    worker.barrier();
    worker.share(call.merge_count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const AttentionUnit& tile = call.merges[i];
            for (int64_t row = 0; row < tile.positions * tile.heads; ++row)
                merge_split_row(call, tile, row, scratch.running);
        }
    });
}

}  // namespace forge::FORGE_ISA
