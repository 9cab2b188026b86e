// The linear kernels of one instruction set: panels of packed weights times tiles of activation rows.
#include "linear.hpp"

#include "kernels.hpp"
#include "linear_float.hpp"
#include "linear_formats.hpp"
#include "pool.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

int tile_rows() { return kTileRows; }

namespace {

// Bytes of weights fetched ahead of their use: at one row this doubles what the k-quants reach.
constexpr int kPrefetchAhead = 4096;

// G rows of one block: f[g] += scale·(weights·activations).
template <class Format, int G>
FORGE_INLINE void add_block(const Decoded& in, const uint8_t* a, f32x16* f) {
    constexpr int kStride = sizeof(ActivationBlock);
    constexpr int kScale = offsetof(ActivationBlock, scale), kScaledSum = offsetof(ActivationBlock, scaled_sum);
    i32x16 c[G];
    if constexpr (Format::kHalves) {
        i32x16 second[G];
        dot_rows<4, Format::kBits, Format::kOffset>(c, in.w, a, kStride, Format::kSum);
        dot_rows<4, Format::kBits, Format::kOffset>(second, in.w + 4, a + 16, kStride, Format::kSum + 4 - 16);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
            const f32x16 scale = splat(peek<float>(a + g * kStride + kScale));
            f[g] = fma(to_float(c[g]), in.scale * scale, f[g]);
            f[g] = fma(to_float(second[g]), in.second_scale * scale, f[g]);
        }
    } else {
        dot_rows<8, Format::kBits, Format::kOffset>(c, in.w, a, kStride, Format::kSum);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
            f[g] = fma(to_float(c[g]), in.scale * splat(peek<float>(a + g * kStride + kScale)), f[g]);
            if constexpr (Format::kMinimum)
                f[g] = fma(in.minimum, splat(peek<float>(a + g * kStride + kScaledSum)), f[g]);
        }
    }
}

// Which of the first `count` <= 16 bytes, each 0 or 1, are 1; what follows them may be anything.
FORGE_INLINE uint32_t marked(const uint8_t* bytes, int count) {
    const auto bits = [bytes](int at) __attribute__((always_inline)) {
        const uint64_t ones = peek<uint64_t>(bytes + at) & 0x0101010101010101u;
        return static_cast<uint32_t>((ones * 0x0102040810204080u) >> 56);  // byte i's one becomes bit i
    };
    return (count > 8 ? bits(0) | bits(8) << 8 : bits(0)) & ((1u << count) - 1);
}

// Blocks that have a second term, of M rows: sums[m] += them. They are few, and their sums few enough to stay in the
// first-level cache, so that those of the first terms have the registers.
template <class Format, int M>
FORGE_INLINE void add_second_terms(const Decoded& in, const uint8_t* a, const uint8_t* refined, float* sums) {
#pragma GCC unroll 1
    for (uint32_t rows = marked(refined, M); rows != 0; rows &= rows - 1) {
        const int m = __builtin_ctz(rows);
        f32x16 sum = load(sums + 16 * m);
        add_block<Format, 1>(in, a + m * sizeof(ActivationBlock), &sum);
        store(sums + 16 * m, sum);
    }
}

// One panel times the M rows of a tile whose blocks start at `a`; refined: of each block, which rows have second terms,
// or null.
template <class Format, int M>
__attribute__((noinline)) void multiply_panel(const uint8_t* group, int64_t blocks, const uint8_t* a,
                                              const uint8_t* refined, const PanelOutput& out) {
    constexpr int kBlockBytes = (Format::kBytes + Format::kBlocks - 1) / Format::kBlocks;
    constexpr int kTileBytes = M * sizeof(ActivationBlock);
    f32x16 f[M];
    alignas(64) float second[M * 16];
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) f[m] = zero();
    if (refined != nullptr)
        for (int m = 0; m < M; ++m) store(second + 16 * m, zero());
    for (; blocks > 0; blocks -= Format::kBlocks, group += Format::kBytes) {
        const typename Format::Head head = Format::head(group);
        const int here = blocks < Format::kBlocks ? static_cast<int>(blocks) : Format::kBlocks;
#pragma GCC unroll 1
        for (int s = 0; s < here; ++s) {
#pragma GCC unroll 16
            for (int line = 0; line < kBlockBytes; line += 64)
                prefetch(group + kPrefetchAhead + s * kBlockBytes + line);
            Decoded decoded;
            Format::decode(group, head, s, decoded);
            constexpr int kWhole = M / kRowGroup, kRest = M % kRowGroup;
#pragma GCC unroll 16
            for (int g = 0; g < kWhole; ++g)
                add_block<Format, kRowGroup>(decoded, a + g * kRowGroup * sizeof(ActivationBlock), f + g * kRowGroup);
            if constexpr (kRest > 0)
                add_block<Format, kRest>(decoded, a + kWhole * kRowGroup * sizeof(ActivationBlock), f + kWhole * kRowGroup);
            a += kTileBytes;
            if (refined != nullptr) {
                add_second_terms<Format, M>(decoded, a, refined, second);
                a += kTileBytes;
                refined += M;
            }
        }
    }
    // A row without second terms adds zero.
    if (refined != nullptr)
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) f[m] = f[m] + load(second + 16 * m);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) finish_row(out, m, f[m]);
}

using PanelKernel = void (*)(const uint8_t*, int64_t, const uint8_t*, const uint8_t*, const PanelOutput&);

template <int... I>
struct Numbers {};
template <int N, int... I>
struct NumbersBelow : NumbersBelow<N - 1, N - 1, I...> {};
template <int... I>
struct NumbersBelow<0, I...> {
    using List = Numbers<I...>;
};

// The kernel of a format for M rows is entry M - 1.
template <class Format, int... I>
const PanelKernel* kernels_of(Numbers<I...>) {
    static constexpr PanelKernel table[] = {multiply_panel<Format, I + 1>...};
    return table;
}

const PanelKernel* kernels_of(Encoding encoding) {
    using Heights = NumbersBelow<kTileRows>::List;
    switch (encoding) {
        case Encoding::q4_0: return kernels_of<FormatQ4_0>(Heights{});
        case Encoding::q4_1: return kernels_of<FormatQ4_1>(Heights{});
        case Encoding::q8_0: return kernels_of<FormatQ8_0>(Heights{});
        case Encoding::q4_k: return kernels_of<FormatQ4_K>(Heights{});
        case Encoding::q5_k: return kernels_of<FormatQ5_K>(Heights{});
        case Encoding::q6_k: return kernels_of<FormatQ6_K>(Heights{});
        default: return nullptr;
    }
}

// Part `part` of `parts` of the rows: whole tiles.
struct RowPart {
    int64_t part, parts;

    __attribute__((always_inline)) int64_t begin(int64_t tiles) const { return tiles * part / parts; }
    __attribute__((always_inline)) int64_t end(int64_t tiles) const { return tiles * (part + 1) / parts; }
};

// Panels [begin, end) of one segment, some of the rows.
void multiply_segment(const LinearCall& call, const Segment& segment, int64_t begin, int64_t end, const RowPart& rows) {
    const auto output = [&](int64_t row, int64_t panel) __attribute__((always_inline)) {
        const int64_t column = segment.first_row + panel * kPanelRows;
        const int64_t left = segment.rows - panel * kPanelRows;
        return PanelOutput{call.y + row * call.ldy + column, call.ldy, call.bias ? call.bias + column : nullptr,
                           static_cast<int>(left < kPanelRows ? left : kPanelRows), call.add};
    };
    if (const PanelKernel* kernels = kernels_of(segment.encoding)) {
        const Activations& activations = *call.activations;
        for (int64_t tile = rows.begin(activations.tiles); tile < rows.end(activations.tiles); ++tile) {
            const int64_t row = activations.tile_begin(tile), height = activations.tile_begin(tile + 1) - row;
            const auto* a = reinterpret_cast<const uint8_t*>(activations.tile_blocks(tile));
            const uint8_t* refined = activations.tile_refined(tile);
            for (int64_t panel = begin; panel < end; ++panel)
                kernels[height - 1](segment.data + panel * segment.panel_bytes, activations.blocks_a_row(), a, refined,
                                    output(row, panel));
        }
        return;
    }
    const int64_t tiles = (call.rows + kFloatTileRows - 1) / kFloatTileRows;
    for (int64_t tile = rows.begin(tiles); tile < rows.end(tiles); ++tile) {
        const int64_t row = call.rows * tile / tiles, height = call.rows * (tile + 1) / tiles - row;
        for (int64_t panel = begin; panel < end; ++panel)
            multiply_float_panel(segment.encoding, static_cast<int>(height), segment.data + panel * segment.panel_bytes,
                                 call.weights.cols, call.x + row * call.ldx, call.ldx, output(row, panel));
    }
}

// Panels [begin, begin + count) of the whole matrix, as far as there are any.
void multiply_chunk(const LinearCall& call, int64_t begin, int64_t count, const RowPart& rows) {
    for (int i = 0; i < call.weights.count; ++i) {
        const Segment& segment = call.weights.segments[i];
        const int64_t first = begin > segment.first_panel ? begin - segment.first_panel : 0;
        const int64_t end = begin + count - segment.first_panel, last = end < segment.panels ? end : segment.panels;
        if (first < last) multiply_segment(call, segment, first, last, rows);
    }
}

// Rows that a chunk of work has at most, nearly: their activations stay in the second-level cache for all its panels,
// and what is left at the end, when some workers have nothing more to do, is short.
constexpr int64_t kChunkRows = 64;

}  // namespace

void linear(Worker& worker, const LinearCall& call) {
    if (call.rows == 0) return;
    const int64_t panels = call.weights.panels, parts = (call.rows + kChunkRows - 1) / kChunkRows;
    // Eight chunks a worker leave enough to steal; longer ones than eight panels only delay the end.
    int64_t grain = panels * parts / (int64_t{8} * worker.count);
    grain = grain < 1 ? 1 : grain > 8 ? 8 : grain;
    worker.share((panels + grain - 1) / grain * parts, 1, [&](int64_t chunk, int64_t stop) {
        for (; chunk < stop; ++chunk) multiply_chunk(call, chunk / parts * grain, grain, {chunk % parts, parts});
    });
}

}  // namespace forge::FORGE_ISA
