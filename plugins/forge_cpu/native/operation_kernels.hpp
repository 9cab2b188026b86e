// What the sources of one instruction set offer to its table of operations, operations.cpp.
#pragma once

#include <cstdint>

#include "operations.hpp"

namespace forge::FORGE_ISA {

void kv_write(const KvWriteCall& call, std::int64_t begin, std::int64_t end);
void kv_read(const KvReadCall& call, std::int64_t begin, std::int64_t end);
std::int64_t attention_scratch(const AttentionShape& shape, const PageLayout& layout);
void attention(Worker& worker, const AttentionCall& call);
void rms_norm(const RmsNormCall& call, std::int64_t begin, std::int64_t end);
void rope(const RopeCall& call, std::int64_t begin, std::int64_t end);
void silu_mul(const SiluMulCall& call, std::int64_t begin, std::int64_t end);
void add(const AddCall& call, std::int64_t begin, std::int64_t end);
std::int64_t sample_scratch(std::int64_t vocabulary);
void sample(Worker& worker, const SampleCall& call);

extern const Operations operations;

}  // namespace forge::FORGE_ISA
