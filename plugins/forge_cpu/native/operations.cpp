// One instruction set's table of operations; compiled once per set, like what it lists.
#include "operation_kernels.hpp"

namespace forge::FORGE_ISA {

const Operations operations = {
    .kv_write = kv_write,
    .kv_read = kv_read,
    .attention_scratch = attention_scratch,
    .attention = attention,
    .rms_norm = rms_norm,
    .rope = rope,
    .silu_mul = silu_mul,
    .add = add,
    .sample_scratch = sample_scratch,
    .sample = sample,
};

}  // namespace forge::FORGE_ISA
