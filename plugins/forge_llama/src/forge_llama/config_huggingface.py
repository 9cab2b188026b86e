"""config.json of a Hugging Face directory → `LlamaConfig`.

Meaning and defaults of the keys are those of transformers' configuration classes; both spellings of the rotary
parameters are read: ``rope_parameters`` (since transformers 5), and ``rope_scaling`` beside ``rope_theta``.
"""

from __future__ import annotations

from collections.abc import Mapping

from attrs import frozen

from forge.errors import ModelFileError, UnsupportedModel
from forge.interfaces.loader import Checkpoint
from forge_llama import config as limits
from forge_llama.config import LlamaConfig, check_heads, even_head_dim
from forge_llama.metadata import Metadata, shown
from forge_llama.names import HUGGING_FACE
from forge_llama.rope import Linear, Llama3, Rope, Yarn, yarn_magnitude


@frozen
class Family:
    """How the architectures differ where config.json doesn't say. attention_bias: the key exists, and is for q, k, v
    and the output alike. head_dim: the default, where it isn't the hidden size divided among the heads. window: the
    default of ``sliding_window``. layered: that window is only for some layers, and must be switched on.
    """

    architecture: str
    attention_bias: bool = False
    qkv_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    head_dim: int | None = None
    window: int | None = None
    layered: bool = False


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", attention_bias=True, mlp_bias=True),
    "mistral": Family("MistralForCausalLM", window=4096),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True, window=4096, layered=True),
    "qwen3": Family("Qwen3ForCausalLM", attention_bias=True, qk_norm=True, head_dim=128, window=4096, layered=True),
}

MAX_WINDOW_LAYERS = 28
"""Default of ``max_window_layers`` in both Qwen configurations."""

HARMLESS = frozenset({
    # provenance, storage and housekeeping
    "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path", "attn_implementation",
    "dtype", "is_llama_config", "model_type", "tokenizer_class", "torch_dtype", "torchscript", "transformers.js_config",
    "transformers_version", "unsloth_fixed", "unsloth_version", "use_bfloat16",
    # training
    "attention_dropout", "gradient_checkpointing", "hidden_dropout", "initializer_range", "resid_pdrop",
    # what a forward pass returns, keeps and is cut into
    "chunk_size_feed_forward", "output_attentions", "output_hidden_states", "output_scores", "return_dict",
    "return_dict_in_generate", "use_cache",
    # labels of classifiers
    "finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
    # ids and defaults for generating, which the loader reads
    "begin_suppress_tokens", "bos_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "pad_token_id", "prefix", "sep_token_id", "suppress_tokens", "unk_token_id",
    "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "remove_invalid_values",
    "repetition_penalty", "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip
"""Keys that don't change what the forward pass computes."""

ABSENT: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu",),
    "pretraining_tp": (1,),
    "partial_rotary_factor": (1,),
    "rope_interleaved": (False,),
    "use_mrope": (False,),
    "add_cross_attention": (False,),
    "is_decoder": (True, False),
    "is_encoder_decoder": (False,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({},),
    "quantization_config": (),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "clip_qkv": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "attention_multiplier": (),
}
"""Keys for what isn't implemented, and the values (besides null) that mean that it isn't wanted."""


def read_huggingface(checkpoint: Checkpoint) -> LlamaConfig:
    """Errors: `UnsupportedModel` that names key and value; `ModelFileError` for missing keys and impossible values."""
    family = FAMILIES.get(checkpoint.architecture)
    if family is None:
        known = ", ".join(FAMILIES)
        raise UnsupportedModel(f"config.json: model_type = {shown(checkpoint.architecture)} isn't one of {known}")
    keys = Metadata(checkpoint.metadata, "config.json")
    keys.require("architectures", [family.architecture])
    for key, absent in ABSENT.items():
        keys.require(key, *absent)

    hidden = keys.integer("hidden_size", most=limits.MAX_WIDTH)
    heads = keys.integer("num_attention_heads", most=limits.MAX_HEADS)
    kv_heads = keys.integer("num_key_value_heads", heads, most=limits.MAX_HEADS)
    default = family.head_dim if "head_dim" in keys or family.head_dim else even_head_dim(keys.place, hidden, heads)
    head_dim = keys.integer("head_dim", default, most=limits.MAX_HEAD_DIM)
    check_heads(keys.place, heads, kv_heads, head_dim)
    layers = keys.integer("num_hidden_layers", most=limits.MAX_LAYERS)
    context_length = keys.integer("max_position_embeddings", most=limits.MAX_CONTEXT)
    attention_bias = _bias(keys, "attention_bias", family.attention_bias)
    # A checkpoint with both tensors means them both, whatever it says of tying.
    tied = keys.flag("tie_word_embeddings", False) and HUGGING_FACE.head not in checkpoint.tensors
    config = LlamaConfig(
        vocab_size=keys.integer("vocab_size", most=limits.MAX_VOCABULARY),
        context_length=context_length,
        hidden=hidden,
        intermediate=keys.integer("intermediate_size", most=limits.MAX_WIDTH),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=keys.number("rms_norm_eps", 1e-6, least=limits.MIN_EPS, most=limits.MAX_EPS),
        attention_scale=head_dim**-0.5,
        rope=_rope(keys, head_dim, context_length),
        windows=_windows(keys, family, layers),
        tied=tied,
        qkv_bias=attention_bias or family.qkv_bias,
        output_bias=attention_bias,
        mlp_bias=_bias(keys, "mlp_bias", family.mlp_bias),
        qk_norm=family.qk_norm,
    )
    keys.refuse_rest(HARMLESS.__contains__)
    return config


def _bias(keys: Metadata, key: str, known: bool) -> bool:
    if known:
        return keys.flag(key, False)
    keys.require(key, False)
    return False


def _windows(keys: Metadata, family: Family, layers: int) -> tuple[int | None, ...]:
    """Each layer's window. ``layer_types`` lists them; otherwise the first ``max_window_layers`` see everything."""
    window = family.window
    if keys.names("sliding_window"):
        window = keys.integer("sliding_window", 0, least=0, most=limits.MAX_CONTEXT) or None
    if window is not None and family.window is None:
        raise keys.refusal("sliding_window", f"isn't known to {family.architecture}")
    first = 0
    if family.layered:
        first = keys.integer("max_window_layers", MAX_WINDOW_LAYERS, least=0, most=limits.MAX_LAYERS)
        if not keys.flag("use_sliding_window", False):
            window = None
    types = keys.texts("layer_types", layers)
    if types is None:
        return tuple(window if layer >= first else None for layer in range(layers))
    slides = [kind == "sliding_attention" for kind in types]
    uniform = family.layered or all(slide == (window is not None) for slide in slides)
    if not set(types) <= {"sliding_attention", "full_attention"} or not uniform or (any(slides) and window is None):
        raise keys.refusal("layer_types")
    return tuple(window if slide else None for slide in slides)


def _rope(keys: Metadata, head_dim: int, context_length: int) -> Rope:
    if "rope_scaling" in keys and "rope_parameters" in keys:
        raise ModelFileError(f"{keys.place}: rope_scaling and rope_parameters are both given")
    outer_theta = keys.number("rope_theta", 10000.0, least=limits.MIN_THETA, most=limits.MAX_THETA)
    outer_original = keys.integer("original_max_position_embeddings", context_length, most=limits.MAX_CONTEXT)
    rope = keys.table("rope_scaling" if "rope_scaling" in keys else "rope_parameters")
    theta = rope.number("rope_theta", outer_theta, least=limits.MIN_THETA, most=limits.MAX_THETA)
    rope.require("partial_rotary_factor", 1)
    kind_key = "rope_type" if "rope_type" in rope else "type"
    kind = rope.text(kind_key, "default")
    if kind != "default" and "type" in rope:
        rope.require("type", kind)

    def factor(key: str, default: float | None = None) -> float:
        return rope.number(key, default, least=limits.MIN_FACTOR, most=limits.MAX_FACTOR)

    scaling: Linear | Llama3 | Yarn | None
    match kind:
        case "default":
            scaling = None
        case "linear":
            scaling = Linear(factor("factor"))
        case "llama3":
            original = _original(rope, keys, outer_original)
            scaling = Llama3(factor("factor"), factor("low_freq_factor"), factor("high_freq_factor"), original)
            if scaling.low_freq_factor >= scaling.high_freq_factor:
                raise ModelFileError(f"{rope.place}: rope scaling: low_freq_factor must be below high_freq_factor")
        case "yarn":
            original = _original(rope, keys, outer_original)
            scaling = Yarn(
                factor("factor"),
                original,
                factor("attention_factor", _yarn_attention_factor(rope)),
                factor("beta_fast", 32.0),
                factor("beta_slow", 1.0),
                rope.flag("truncate", True),
            )
        case _:
            raise rope.refusal(kind_key)
    rope.refuse_rest(frozenset().__contains__)
    return Rope(theta, head_dim, scaling=scaling)


def _original(rope: Metadata, keys: Metadata, outer: int) -> int:
    """The context before scaling. Beside the table it has precedence, as in transformers."""
    inner = rope.integer("original_max_position_embeddings", outer, most=limits.MAX_CONTEXT)
    return outer if "original_max_position_embeddings" in keys else inner


def _yarn_attention_factor(rope: Metadata) -> float:
    """What ``attention_factor`` is where it isn't given."""
    factor = rope.number("factor", least=limits.MIN_FACTOR, most=limits.MAX_FACTOR)
    mscale = rope.number("mscale", 0.0, least=0.0, most=limits.MAX_FACTOR)
    mscale_all_dim = rope.number("mscale_all_dim", 0.0, least=0.0, most=limits.MAX_FACTOR)
    if mscale and mscale_all_dim:
        return yarn_magnitude(factor, mscale) / yarn_magnitude(factor, mscale_all_dim)
    return yarn_magnitude(factor)
