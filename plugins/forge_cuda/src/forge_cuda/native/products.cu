// Activations in eight bits, and their products with quantised weights by dp4a: one source for every format and up to
// eight rows, chosen by -DFORMAT_Q4_K=1 -DROWS=2. Weights come as the planes that forge_cuda/formats.py describes, so
// that a thread reads a group's quants in loads of 16 bytes. Includes nothing: NVRTC needs no toolkit for it, and a shim
// runs it on a CPU.

#ifndef FORGE_SHIM
__device__ __forceinline__ float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
#endif

constexpr int WARPS = 4;
constexpr int OUTPUTS = 2;  // of a warp
constexpr int GROUP = 32;

struct alignas(16) Words4 { int x[4]; };

// One warp a group of 32 activations: scale = largest / 127; sums: of the rounded values, times the scale.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
round_activations(const float* __restrict__ x, signed char* __restrict__ quants, float* __restrict__ scales,
                  float* __restrict__ sums, int groups) {
    const int lane = threadIdx.x % 32;
    const int group = blockIdx.x * WARPS + threadIdx.x / 32;
    const float value = group < groups ? x[(long long)group * GROUP + lane] : 0.0f;
    float largest = fabsf(value);
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
    const float scale = largest / 127.0f;
    const int quant = largest > 0.0f ? __float2int_rn(value / scale) : 0;
    int sum = quant;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (group >= groups) return;
    quants[(long long)group * GROUP + lane] = (signed char)quant;
    if (lane == 0) {
        scales[group] = scale;
        sums[group] = scale * (float)sum;
    }
}

constexpr int WORDS = 8;  // of a group's quants, four in each

// A group's weights as eight words of four: first weights 0 to 15, then 16 to 31. Unsigned but for Q8_0.
__device__ __forceinline__ void load_group(const unsigned char* quants, const unsigned char* high, long long at,
                                           int (&words)[WORDS]) {
#ifdef FORMAT_Q8_0
    const Words4* source = reinterpret_cast<const Words4*>(quants + at * 32);
    const Words4 a = source[0], b = source[1];
    for (int i = 0; i < 4; ++i) {
        words[i] = a.x[i];
        words[i + 4] = b.x[i];
    }
#else
    const Words4 pairs = *reinterpret_cast<const Words4*>(quants + at * 16);
    for (int i = 0; i < 4; ++i) {
        words[i] = pairs.x[i] & 0x0f0f0f0f;
        words[i + 4] = (int)((unsigned)pairs.x[i] >> 4) & 0x0f0f0f0f;
    }
#endif
#ifdef FORMAT_Q5_K
    const unsigned bits = reinterpret_cast<const unsigned*>(high)[at];
    for (int i = 0; i < 8; ++i) {
        const unsigned four = bits >> (4 * i) & 15;  // the fifth bit of each of a word's weights
        words[i] |= (int)((four & 1) << 4 | (four & 2) << 11 | (four & 4) << 18 | (four & 8) << 25);
    }
#endif
#ifdef FORMAT_Q6_K
    for (int i = 0; i < 8; ++i) {
        const unsigned four = high[at * 8 + i];
        words[i] |= (int)((four & 3) << 4 | (four & 12) << 10 | (four & 48) << 16 | (four & 192) << 22);
    }
#endif
}

// What dot products of a group's first and second halves become, given the activations' scale and sum.
__device__ __forceinline__ float scaled(int first, int second, int first_sum, int second_sum, float x_scale,
                                        float x_sum, const unsigned char* scales, const unsigned short* deltas,
                                        long long at) {
#if defined(FORMAT_Q8_0)
    return from_half(deltas[at]) * x_scale * (float)(first + second);
#elif defined(FORMAT_Q4_0)
    return from_half(deltas[at]) * (x_scale * (float)(first + second) - 8.0f * x_sum);
#elif defined(FORMAT_Q4_1)
    return from_half(deltas[at * 2]) * x_scale * (float)(first + second) + from_half(deltas[at * 2 + 1]) * x_sum;
#elif defined(FORMAT_Q6_K)
    const signed char* factors = reinterpret_cast<const signed char*>(scales) + at * 2;
    const int total = factors[0] * (first - 32 * first_sum) + factors[1] * (second - 32 * second_sum);
    return from_half(deltas[at / 8]) * x_scale * (float)total;
#else
    const float d = from_half(deltas[at / 8 * 2]), dmin = from_half(deltas[at / 8 * 2 + 1]);
    return d * (float)scales[at * 2] * x_scale * (float)(first + second) - dmin * (float)scales[at * 2 + 1] * x_sum;
#endif
}

// out[rows, outputs] = x @ weights.T + bias. A warp has two outputs for all rows; its lanes take every 32nd group.
extern "C" __global__ void __launch_bounds__(32 * WARPS)
multiply(const unsigned char* __restrict__ quants, const unsigned char* __restrict__ high,
         const unsigned char* __restrict__ scales, const unsigned short* __restrict__ deltas,
         const signed char* __restrict__ x, const float* __restrict__ x_scales, const float* __restrict__ x_sums,
         const float* __restrict__ bias, float* __restrict__ out, int rows, int outputs, int groups) {
    const int lane = threadIdx.x % 32;
    const int first_output = (blockIdx.x * WARPS + threadIdx.x / 32) * OUTPUTS;
    float sums[OUTPUTS][ROWS] = {};
    for (int group = lane; group < groups; group += 32) {
        int words[OUTPUTS][WORDS];
        long long at[OUTPUTS];
        for (int o = 0; o < OUTPUTS; ++o) {
            const int output = first_output + o < outputs ? first_output + o : outputs - 1;
            at[o] = (long long)output * groups + group;
            load_group(quants, high, at[o], words[o]);
        }
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
            const long long place = (long long)(r < rows ? r : rows - 1) * groups + group;
            const Words4* source = reinterpret_cast<const Words4*>(x + place * GROUP);
            const Words4 a = source[0], b = source[1];
            int first_sum = 0, second_sum = 0;
#ifdef FORMAT_Q6_K
            for (int i = 0; i < 4; ++i) {
                first_sum = __dp4a(0x01010101, a.x[i], first_sum);
                second_sum = __dp4a(0x01010101, b.x[i], second_sum);
            }
#endif
            for (int o = 0; o < OUTPUTS; ++o) {
                int first = 0, second = 0;
                for (int i = 0; i < 4; ++i) {
                    first = __dp4a(words[o][i], a.x[i], first);
                    second = __dp4a(words[o][i + 4], b.x[i], second);
                }
                sums[o][r] += scaled(first, second, first_sum, second_sum, x_scales[place], x_sums[place], scales,
                                     deltas, at[o]);
            }
        }
    }
    for (int o = 0; o < OUTPUTS; ++o) {
        for (int r = 0; r < ROWS; ++r) {
            float sum = sums[o][r];
            for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
            const int output = first_output + o;
            if (lane == 0 && output < outputs && r < rows) {
                out[(long long)r * outputs + output] = sum + (bias != nullptr ? bias[output] : 0.0f);
            }
        }
    }
}
