// Which instruction sets this build holds and this processor runs.
#include "isa.hpp"

#include <stdexcept>

#if defined(__aarch64__) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace forge {

#define FORGE_DECLARE(set)        \
    namespace set {               \
    extern const Kernels kernels; \
    }
#ifdef FORGE_WITH_AVX512
FORGE_DECLARE(avx512)
FORGE_DECLARE(avx512bf16)
#endif
#ifdef FORGE_WITH_AVX2
FORGE_DECLARE(avxvnni)
FORGE_DECLARE(avx2)
#endif
#ifdef FORGE_WITH_NEON
FORGE_DECLARE(neon)
#endif
FORGE_DECLARE(portable)
#undef FORGE_DECLARE

namespace {

#if defined(FORGE_WITH_AVX512) || defined(FORGE_WITH_AVX2)
// __builtin_cpu_supports also asks the operating system whether it saves the registers.
bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("f16c");
}
bool has_avx512bf16() { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
bool has_avx2() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avxvnni() { return has_avx2() && __builtin_cpu_supports("avxvnni"); }
#endif

#ifdef FORGE_WITH_NEON
bool has_neon_dot() {
#ifdef __linux__
    const unsigned long caps = getauxval(AT_HWCAP);
    return (caps & HWCAP_ASIMDDP) != 0 && (caps & HWCAP_ASIMDHP) != 0;
#else
    return true;  // every 64-bit Apple processor since 2018 has both
#endif
}
#endif

}  // namespace

std::vector<const Kernels*> runnable_kernels() {
    std::vector<const Kernels*> found;
#ifdef FORGE_WITH_AVX512
    if (has_avx512bf16()) found.push_back(&avx512bf16::kernels);
    if (has_avx512()) found.push_back(&avx512::kernels);
#endif
#ifdef FORGE_WITH_AVX2
    if (has_avxvnni()) found.push_back(&avxvnni::kernels);
    if (has_avx2()) found.push_back(&avx2::kernels);
#endif
#ifdef FORGE_WITH_NEON
    if (has_neon_dot()) found.push_back(&neon::kernels);
#endif
    found.push_back(&portable::kernels);
    return found;
}

const Kernels& find_kernels(const std::string& isa) {
    std::string names;
    for (const Kernels* kernels : runnable_kernels()) {
        if (isa == kernels->isa) return *kernels;
        names += names.empty() ? "" : ", ";
        names += kernels->isa;
    }
    throw std::invalid_argument("instruction set '" + isa + "' can't run here; there are: " + names);
}

}  // namespace forge
