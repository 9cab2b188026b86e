// Sampling, row by row; compiled once per instruction set. See sample.hpp for what is computed, in which order.

#include "sample.hpp"

#include "operation_kernels.hpp"
#include "philox.hpp"
#include "pool.hpp"
#include "sample_select.hpp"
#include "simd.hpp"

namespace forge::FORGE_ISA {

namespace {

constexpr int64_t kChunk = 512;  // weights whose sum is kept, so that a draw looks closely at one chunk only
constexpr float kForbidden = -__builtin_huge_valf();

// A worker's memory.
struct Scratch {
    Histogram* histogram;
    double* chunk_mass;  // [chunks]
    float* row;          // a copy of the logits, where those of the model itself are wanted too
    float* weights;      // candidates: tokens that filters might keep
    int32_t* ids;
};

constexpr int64_t lines(int64_t bytes) { return (bytes + 63) / 64 * 64; }
constexpr int64_t chunks_of(int64_t vocabulary) { return (vocabulary + kChunk - 1) / kChunk; }

Scratch carve(std::byte* at, int64_t vocabulary) {
    auto take = [&at](int64_t bytes) {
        std::byte* piece = at;
        at += lines(bytes);
        return piece;
    };
    Scratch s;
    s.histogram = reinterpret_cast<Histogram*>(take(sizeof(Histogram)));
    s.chunk_mass = reinterpret_cast<double*>(take(chunks_of(vocabulary) * 8));
    s.row = reinterpret_cast<float*>(take(vocabulary * 4));
    s.weights = reinterpret_cast<float*>(take(vocabulary * 4 + 64));
    s.ids = reinterpret_cast<int32_t*>(take(vocabulary * 4 + 64));
    return s;
}

// The largest number, -infinity where there is none; comparisons skip NaNs, and *nans says whether there were any.
float largest_of(const float* x, int64_t n, bool* nans) {
    float lanes[32];
    int32_t strange[32] = {};
    for (float& lane : lanes) lane = kForbidden;
    int64_t i = 0;
    for (; i + 32 <= n; i += 32)
        for (int j = 0; j < 32; ++j) {
            lanes[j] = x[i + j] > lanes[j] ? x[i + j] : lanes[j];
            strange[j] |= x[i + j] != x[i + j] ? 1 : 0;
        }
    for (; i < n; ++i) {
        lanes[0] = x[i] > lanes[0] ? x[i] : lanes[0];
        strange[0] |= x[i] != x[i] ? 1 : 0;
    }
    float most = kForbidden;
    int32_t any = 0;
    for (int j = 0; j < 32; ++j) most = lanes[j] > most ? lanes[j] : most, any |= strange[j];
    *nans = any != 0;
    return most;
}

// The lowest id that has the value, which one has.
int64_t first_equal(const float* x, int64_t n, float value) {
    int64_t i = 0;
    for (; i + 32 <= n; i += 32) {
        int found = 0;
        for (int j = 0; j < 32; ++j) found |= x[i + j] == value;
        if (found) break;
    }
    for (; i < n; ++i)
        if (x[i] == value) return i;
    return 0;
}

// weights[i] = e^((x[i] - largest) / temperature); the sum of each chunk goes to chunk_mass, that of all is returned.
// Sums are in double precision, in an order that depends on the vocabulary alone. Where the largest is infinite, the
// logits equal to it share everything. x may be weights.
double soften(const float* x, int64_t n, float largest, float temperature, float* weights, double* chunk_mass) {
    const f32x16 shift = splat(largest), divisor = splat(temperature), one = splat(1.f);
    const bool finite = largest - largest == 0;
    double total = 0;
    for (int64_t first = 0, chunk = 0; first < n; first += kChunk, ++chunk) {
        const int64_t last = first + kChunk < n ? first + kChunk : n;
        double lanes[16] = {};
        for (int64_t i = first; i < last; i += 16) {
            const int count = last - i < 16 ? static_cast<int>(last - i) : 16;
            const f32x16 v = count == 16 ? load(x + i) : load_partial(x + i, count);
            const f32x16 w = finite ? exp((v - shift) / divisor) : select(less(v, shift), zero(), one);
            float sixteen[16];
            store(sixteen, w);
            if (count == 16) {
                store(weights + i, w);
            } else {
                for (int j = count; j < 16; ++j) sixteen[j] = 0;
                store_partial(weights + i, w, count);
            }
            for (int j = 0; j < 16; ++j) lanes[j] += static_cast<double>(sixteen[j]);
        }
        double sum = 0;
        for (const double lane : lanes) sum += lane;
        chunk_mass[chunk] = sum;
        total += sum;
    }
    return total;
}

// A select for each value and no branch, so that it becomes vector code: masks of JSON have few words without a zero.
void apply_mask(const int32_t* words, int64_t vocabulary, float* x) {
    int64_t first = 0;
    for (; first + 32 <= vocabulary; first += 32) {
        const auto word = static_cast<uint32_t>(words[first / 32]);
        if (word == 0xffffffffu) continue;
        for (uint32_t i = 0; i < 32; ++i) x[first + i] = (word & (1u << i)) != 0 ? x[first + i] : kForbidden;
    }
    for (int64_t i = first; i < vocabulary; ++i)
        if ((static_cast<uint32_t>(words[i / 32]) >> (i % 32) & 1) == 0) x[i] = kForbidden;
}

// Bias, penalties, mask and bans.
void adjust(const SampleCall& call, int64_t row, float* x) {
    if (call.bias_starts != nullptr)
        for (int64_t i = call.bias_starts[row]; i < call.bias_starts[row + 1]; ++i)
            x[call.bias_ids[i]] += call.bias_values[i];
    if (call.history_starts != nullptr) {
        const float repetition = call.repetition_penalty[row], presence = call.presence_penalty[row];
        const float frequency = call.frequency_penalty[row];
        for (int64_t i = call.history_starts[row]; i < call.history_starts[row + 1]; ++i) {
            float& value = x[call.history_ids[i]];
            const int64_t count = call.history_counts[i];
            value = value > 0 ? value / repetition : value * repetition;
            if (count > 0) value -= presence;
            value -= frequency * static_cast<float>(count);
        }
    }
    if (call.masks != nullptr) apply_mask(call.masks + row * call.mask_words, call.vocabulary, x);
    if (call.banned_starts != nullptr)
        for (int64_t i = call.banned_starts[row]; i < call.banned_starts[row + 1]; ++i)
            x[call.banned_ids[i]] = kForbidden;
}

// How many weights reach the cut, and roughly (to 1e-3) their sum.
int64_t reaching(const float* weights, int64_t n, float cut, float* mass) {
    float sums[16] = {};
    int32_t counts[16] = {};
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int j = 0; j < 16; ++j) {
            const bool reaches = weights[i + j] >= cut;
            sums[j] += reaches ? weights[i + j] : 0.f;
            counts[j] += reaches ? 1 : 0;
        }
    for (; i < n; ++i)
        if (weights[i] >= cut) sums[0] += weights[i], ++counts[0];
    int64_t count = 0;
    *mass = 0;
    for (int j = 0; j < 16; ++j) count += counts[j], *mass += sums[j];
    return count;
}

// Weights of at least the cut and their ids, in ascending order of ids. Blocks without any are passed over at once.
int64_t gather(const float* weights, int64_t n, float cut, const Scratch& scratch) {
    int64_t found = 0;
    for (int64_t first = 0; first < n; first += 32) {
        const int64_t last = first + 32 < n ? first + 32 : n;
        if (last - first == 32) {
            int any = 0;
            for (int j = 0; j < 32; ++j) any |= weights[first + j] >= cut;
            if (!any) continue;
        }
        for (int64_t i = first; i < last; ++i) {
            scratch.weights[found] = weights[i];
            scratch.ids[found] = static_cast<int32_t>(i);
            found += weights[i] >= cut;
        }
    }
    return found;
}

// The candidates: few where few tokens have nearly all the mass, else all. Weights of 0 are never drawn.
int64_t find_candidates(const float* weights, int64_t n, int64_t top_k, float top_p, double total,
                        const Scratch& scratch) {
    for (const float cut : {0x1p-5f, 0x1p-10f, 0x1p-16f}) {
        float mass;
        const int64_t count = reaching(weights, n, cut, &mass);
        const bool enough = top_k < n ? count >= top_k : mass * 0.999 >= static_cast<double>(top_p) * total;
        if (enough) return gather(weights, n, cut, scratch);
    }
    return gather(weights, n, 0x1p-126f, scratch);
}

// Drops the candidates that top-k, top-p and min-p don't keep; returns how many stay.
int64_t filter(int64_t n, int64_t top_k, float top_p, float min_p, bool ordered, double total, const Scratch& scratch) {
    Prefix kept{0, n, total};
    if (ordered) {
        const double everything = __builtin_huge_val();
        if (top_k < n) kept = find_prefix(scratch.weights, n, top_k, everything, *scratch.histogram);
        if (top_p < 1) {
            const double mass = static_cast<double>(top_p) * kept.mass;
            const Prefix nucleus = find_prefix(scratch.weights, n, n, mass, *scratch.histogram);
            if (shorter(nucleus, kept)) kept = nucleus;
        }
    }
    const float threshold = peek<float>(&kept.threshold);
    int64_t left = kept.ties, out = 0;
    for (int64_t i = 0; i < n; ++i) {
        const float w = scratch.weights[i];
        if (w < threshold || w < min_p) continue;
        if (w == threshold && left-- <= 0) continue;
        scratch.weights[out] = w;
        scratch.ids[out++] = scratch.ids[i];
    }
    return out;
}

// The first candidate at which the running sum exceeds u times the whole.
int64_t draw_candidate(int64_t n, double u, const Scratch& scratch) {
    double total = 0, sum = 0;
    for (int64_t i = 0; i < n; ++i) total += static_cast<double>(scratch.weights[i]);
    for (int64_t i = 0; i < n; ++i) {
        sum += static_cast<double>(scratch.weights[i]);
        if (sum > u * total) return scratch.ids[i];
    }
    return scratch.ids[n - 1];
}

// The same over the whole vocabulary, chunk by chunk.
int64_t draw_any(const float* weights, int64_t n, double u, double total, const double* chunk_mass) {
    const double target = u * total;
    double sum = 0;
    int64_t last = -1;  // the last chunk that has any mass, should u · total round up to the total
    double before_last = 0;
    for (int64_t chunk = 0; chunk < chunks_of(n); ++chunk) {
        if (chunk_mass[chunk] > 0) last = chunk, before_last = sum;
        if (sum + chunk_mass[chunk] > target) break;
        sum += chunk_mass[chunk];
    }
    const int64_t end = (last + 1) * kChunk < n ? (last + 1) * kChunk : n;
    int64_t found = 0;
    sum = before_last;
    for (int64_t i = last * kChunk; i < end; ++i) {
        if (!(weights[i] > 0)) continue;
        found = i;
        sum += static_cast<double>(weights[i]);
        if (sum > target) break;
    }
    return found;
}

int64_t draw(const SampleCall& call, int64_t row, float* x, const Scratch& scratch) {
    const int64_t n = call.vocabulary;
    bool nans;
    const float largest = largest_of(x, n, &nans);
    if (nans || !(largest - largest == 0)) return kNoToken;
    const float temperature = call.temperature[row];
    if (!(temperature > 0)) return first_equal(x, n, largest);
    const double total = soften(x, n, largest, temperature, x, scratch.chunk_mass);
    const double u = philox_uniform(call.seed[row], call.choice[row], call.position[row]);
    const int64_t top_k = call.top_k[row] > 0 && call.top_k[row] < n ? call.top_k[row] : n;
    const float top_p = call.top_p[row];
    // The largest weight is 1, and it's always kept.
    const float min_p = call.min_p[row] < 1.f ? call.min_p[row] : 1.f;
    const bool ordered = top_k < n || top_p < 1;
    if (!ordered && !(min_p > 0)) return draw_any(x, n, u, total, scratch.chunk_mass);
    const int64_t candidates =
        ordered ? find_candidates(x, n, top_k, top_p, total, scratch) : gather(x, n, min_p, scratch);
    return draw_candidate(filter(candidates, top_k, top_p, min_p, ordered, total, scratch), u, scratch);
}

// The most probable tokens, ties by lowest id: an insertion into a list this short, for the few that get there.
void find_top(const float* x, int64_t n, int64_t wanted, int64_t* ids, float* values) {
    int64_t filled = 0;
    for (int64_t first = 0; first < n; first += 32) {
        const int64_t last = first + 32 < n ? first + 32 : n;
        if (filled == wanted && last - first == 32) {
            int any = 0;
            for (int j = 0; j < 32; ++j) any |= x[first + j] > values[wanted - 1];
            if (!any) continue;
        }
        for (int64_t i = first; i < last; ++i) {
            if (filled == wanted && !(x[i] > values[wanted - 1])) continue;
            int64_t at = filled < wanted ? filled++ : wanted - 1;
            for (; at > 0 && values[at - 1] < x[i]; --at) values[at] = values[at - 1], ids[at] = ids[at - 1];
            values[at] = x[i];
            ids[at] = i;
        }
    }
}

// The logarithm of a logit's share. Infinite logits share everything.
float logprob(float x, float largest, double log_total) {
    const double below = x == largest ? 0. : static_cast<double>(x) - static_cast<double>(largest);
    return static_cast<float>(below - log_total);
}

void sample_row(const SampleCall& call, int64_t row, const Scratch& scratch) {
    const int64_t n = call.vocabulary;
    float* logits = call.logits + row * call.stride;
    float* x = logits;
    float largest = 0;
    double log_total = 0;
    if (call.logprobs != nullptr) {
        bool nans;
        largest = largest_of(logits, n, &nans);
        const double total = soften(logits, n, largest, 1.f, scratch.row, scratch.chunk_mass);
        log_total = nans ? __builtin_nan("") : __builtin_log(total);
        if (call.alternatives > 0) {
            float* values = call.top_logprobs + row * call.alternatives;
            find_top(logits, n, call.alternatives, call.top_ids + row * call.alternatives, values);
            for (int64_t i = 0; i < call.alternatives; ++i) values[i] = logprob(values[i], largest, log_total);
        }
        __builtin_memcpy(scratch.row, logits, static_cast<std::size_t>(n) * sizeof(float));
        x = scratch.row;
    }
    int64_t token = call.targets != nullptr ? call.targets[row] : -1;
    if (token < 0) {
        adjust(call, row, x);
        token = draw(call, row, x, scratch);
    }
    call.tokens[row] = token;
    if (call.logprobs == nullptr) return;
    call.logprobs[row] = token == kNoToken ? 0.f : logprob(logits[token], largest, log_total);
}

}  // namespace

int64_t sample_scratch(int64_t vocabulary) {
    return lines(sizeof(Histogram)) + lines(chunks_of(vocabulary) * 8) + lines(vocabulary * 4) +
           2 * lines(vocabulary * 4 + 64);
}

void sample(Worker& worker, const SampleCall& call) {
    const Scratch scratch = carve(call.scratch + worker.index * sample_scratch(call.vocabulary), call.vocabulary);
    worker.share(call.rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) sample_row(call, row, scratch);
    });
}

}  // namespace forge::FORGE_ISA
