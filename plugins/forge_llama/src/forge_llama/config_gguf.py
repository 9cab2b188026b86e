"""GGUF metadata → `LlamaConfig`.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#llm, and what llama.cpp makes of them. Biases, tied
embeddings and Llama 3's frequency factors have no keys: the tensors themselves say that they are there.
"""

from __future__ import annotations

from collections.abc import Mapping

from forge.errors import ModelFileError, UnsupportedModel
from forge.interfaces.loader import Checkpoint, Weight
from forge_llama import config as limits
from forge_llama.config import LlamaConfig, check_heads, even_head_dim
from forge_llama.metadata import Metadata, shown
from forge_llama.names import GGUF
from forge_llama.rope import Linear, Rope, Yarn, yarn_magnitude

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""Names in GGUF files; a Mistral is a "llama" there."""

# llama.cpp's converter reorders the rows of Q and K of this architecture so that rotated pairs are neighbours.
INTERLEAVED = frozenset({"llama"})
QKV_BIAS = frozenset({"qwen2"})
QK_NORM = frozenset({"qwen3"})

HARMLESS_NAMESPACES = ("general.", "tokenizer.", "split.", "quantize.", "mradermacher.")
"""Who made the file and how, its tokenizer (read elsewhere), and its parts (the loader's business)."""

HARMLESS = frozenset({"tensor_data_layout", "rope.scaling.finetuned"})
"""Keys below the architecture's name that only tell where the weights came from."""

ABSENT: Mapping[str, tuple[object, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "use_parallel_residual": (False,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
}
"""Keys below the architecture's name for what isn't implemented, and the values that mean that it isn't wanted."""


def read_gguf(checkpoint: Checkpoint) -> LlamaConfig:
    """Errors: `UnsupportedModel` that names key and value; `ModelFileError` for missing keys and impossible values."""
    arch, tensors, place = checkpoint.architecture, checkpoint.tensors, checkpoint.path.name
    if arch not in ARCHITECTURES:
        raise UnsupportedModel(f"{place}: general.architecture = {shown(arch)} isn't one of {', '.join(ARCHITECTURES)}")
    prefix = f"{arch}."
    file = Metadata(checkpoint.metadata, place)
    file.require("general.type", "model")
    file.refuse_rest(lambda key: key.startswith((prefix, *HARMLESS_NAMESPACES)))
    own = {key.removeprefix(prefix): value for key, value in checkpoint.metadata.items() if key.startswith(prefix)}
    keys = Metadata(own, place, prefix)
    for key, absent in ABSENT.items():
        keys.require(key, *absent)

    hidden = keys.integer("embedding_length", most=limits.MAX_WIDTH)
    heads = keys.common_integer("attention.head_count", most=limits.MAX_HEADS)
    kv_heads = keys.common_integer("attention.head_count_kv", heads, most=limits.MAX_HEADS)
    head_dim = _head_dim(keys, hidden, heads)
    check_heads(keys.place, heads, kv_heads, head_dim)
    layers = keys.integer("block_count", most=limits.MAX_LAYERS)
    window = keys.integer("attention.sliding_window", 0, least=0, most=limits.MAX_CONTEXT) or None
    context_length = keys.integer("context_length", most=limits.MAX_CONTEXT)
    scale = keys.number("attention.scale", 0.0, least=0.0, most=limits.MAX_FACTOR)
    config = LlamaConfig(
        vocab_size=keys.integer("vocab_size", _table_rows(tensors, place), most=limits.MAX_VOCABULARY),
        context_length=context_length,
        hidden=hidden,
        intermediate=keys.common_integer("feed_forward_length", most=limits.MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=keys.number("attention.layer_norm_rms_epsilon", least=limits.MIN_EPS, most=limits.MAX_EPS),
        attention_scale=scale or head_dim**-0.5,
        rope=_rope(keys, head_dim, context_length, interleaved=arch in INTERLEAVED),
        windows=(window,) * layers,
        tied=GGUF.head not in tensors,
        qkv_bias=arch in QKV_BIAS or GGUF.of(0, GGUF.q, "bias") in tensors,
        output_bias=GGUF.of(0, GGUF.output, "bias") in tensors,
        mlp_bias=GGUF.of(0, GGUF.gate, "bias") in tensors,
        qk_norm=arch in QK_NORM,
        frequency_factors=GGUF.frequency_factors in tensors,
    )
    keys.refuse_rest(HARMLESS.__contains__)
    return config


def _table_rows(tensors: Mapping[str, Weight], place: str) -> int:
    """The vocabulary's size, which older files don't tell otherwise."""
    if GGUF.embedding not in tensors or not tensors[GGUF.embedding].shape:
        raise ModelFileError(f"{place}: tensor {GGUF.embedding} is missing")
    return tensors[GGUF.embedding].shape[0]


def _head_dim(keys: Metadata, hidden: int, heads: int) -> int:
    default = None if "attention.key_length" in keys else even_head_dim(keys.place, hidden, heads)
    head_dim = keys.integer("attention.key_length", default, most=limits.MAX_HEAD_DIM)
    keys.require("attention.value_length", head_dim)
    keys.require("rope.dimension_count", head_dim)  # no model of the family rotates a part of its heads
    return head_dim


def _rope(keys: Metadata, head_dim: int, context_length: int, *, interleaved: bool) -> Rope:
    theta = keys.number("rope.freq_base", 10000.0, least=limits.MIN_THETA, most=limits.MAX_THETA)
    gain = keys.number("rope.scaling.attn_factor", 1.0, least=limits.MIN_FACTOR, most=limits.MAX_FACTOR)
    old_factor = keys.number("rope.scale_linear", 0.0, least=0.0, most=limits.MAX_FACTOR)
    factor = keys.number("rope.scaling.factor", old_factor, least=0.0, most=limits.MAX_FACTOR) or 1.0
    original = keys.integer("rope.scaling.original_context_length", context_length, most=limits.MAX_CONTEXT)
    beta_fast = keys.number("rope.scaling.yarn_beta_fast", 32.0, least=limits.MIN_FACTOR, most=limits.MAX_FACTOR)
    beta_slow = keys.number("rope.scaling.yarn_beta_slow", 1.0, least=limits.MIN_FACTOR, most=limits.MAX_FACTOR)
    kind = keys.text("rope.scaling.type", "linear")
    scaling: Linear | Yarn | None
    match kind:
        case "none":
            scaling = None
        case "linear":
            scaling = Linear(factor) if factor != 1.0 else None
        case "yarn":
            # Converters write Hugging Face's attention factor here; what reads it multiplies, or ignores it.
            keys.require("rope.scaling.yarn_attn_factor")
            keys.require("rope.scaling.yarn_ext_factor", 1)
            keys.require("rope.scaling.yarn_log_multiplier", 0)
            scaling = Yarn(factor, original, yarn_magnitude(factor), beta_fast, beta_slow)
        case _:
            raise keys.refusal("rope.scaling.type")
    return Rope(theta, head_dim, interleaved, scaling, gain)
