"""Whatever changes the mathematics and isn't implemented is refused by name; damage is told from it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from attrs import evolve
from forge_llama.model import LlamaModel
from hypothesis import given, settings
from hypothesis import strategies as st

from forge.errors import ForgeError, ModelFileError, UnsupportedModel
from forge.interfaces.loader import Checkpoint

ABSENT = object()


def changed(checkpoint: Checkpoint, changes: dict[str, Any]) -> Checkpoint:
    metadata = {**checkpoint.metadata, **changes}
    return evolve(checkpoint, metadata={key: value for key, value in metadata.items() if value is not ABSENT})


def refused(checkpoint: Checkpoint, error: type[ForgeError], *told: str) -> None:
    with pytest.raises(error) as caught:
        LlamaModel.read(checkpoint)
    assert caught.type is error
    for part in told:
        assert part in caught.value.message


HUGGING_FACE_REFUSED: list[tuple[str, str, Any]] = [
    *(
        ("llama", key, value)
        for key, value in {
            "architectures": ["LlamaForSequenceClassification"],
            "hidden_act": "gelu",
            "quantization_config": {"quant_method": "gptq", "bits": 4},
            "num_experts": 8,
            "num_local_experts": 8,
            "pretraining_tp": 2,
            "partial_rotary_factor": 0.5,
            "rope_interleaved": True,
            "use_mrope": True,
            "sliding_window": 512,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "use_sliding_window": True,
            "clip_qkv": 8.0,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "logit_scale": 0.0625,
            "logits_scaling": 8.0,
            "embedding_multiplier": 12.0,
            "residual_multiplier": 0.22,
            "attention_multiplier": 0.0078125,
            "is_encoder_decoder": True,
            "add_cross_attention": True,
            "pruned_heads": {"0": [1]},
            "auto_map": {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
            "a_key_of_tomorrow": False,
        }.items()
    ),
    ("mistral", "attention_bias", True),
    ("mistral", "mlp_bias", True),
    ("mistral", "layer_types", ["full_attention"] * 3),
    ("qwen2", "mlp_bias", True),
    ("qwen2", "attention_bias", True),
    ("qwen2", "layer_types", ["sliding_attention"] * 3),
    ("qwen2", "layer_types", ["linear_attention"] * 3),
    ("qwen3", "mlp_bias", True),
]


@pytest.mark.parametrize(("name", "key", "value"), HUGGING_FACE_REFUSED)
def test_config_json_keys_that_change_the_mathematics(checkpoints: Any, name: str, key: str, value: Any) -> None:
    refused(changed(checkpoints(name, "safetensors"), {key: value}), UnsupportedModel, "config.json", key)


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        {"rope_type": "proportional"},
        {"rope_type": "default", "mrope_section": [16, 24, 24]},
        {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
        {"rope_type": "linear", "type": "yarn", "factor": 2.0},
        {"full_attention": {"rope_type": "default"}},
    ],
)
@pytest.mark.parametrize("spelling", ["rope_parameters", "rope_scaling"])
def test_rope_scalings_that_are_not_implemented(checkpoints: Any, spelling: str, rope: dict[str, Any]) -> None:
    changes = {"rope_parameters": ABSENT, spelling: rope}
    refused(changed(checkpoints("llama", "safetensors"), changes), UnsupportedModel, f"config.json: {spelling}.")


GGUF_REFUSED: dict[str, Any] = {
    "general.type": "adapter",
    "adapter.type": "lora",
    "qwen2.block_count": 3,
    "llama.expert_count": 8,
    "llama.expert_used_count": np.array([2, 2], np.int32),
    "llama.attention.causal": False,
    "llama.attention.clamp_kqv": 8.0,
    "llama.attention.max_alibi_bias": 8.0,
    "llama.attention.value_length": 16,
    "llama.attention.sliding_window_pattern": 2,
    "llama.attention.head_count": np.array([6, 6, 4], np.int32),
    "llama.attention.head_count_kv": np.array([2, 1, 2], np.int32),
    "llama.feed_forward_length": np.array([80, 80, 96], np.int32),
    "llama.expert_group_count": 4,
    "llama.rope.dimension_count": 4,
    "llama.rope.dimension_sections": [2, 2],
    "llama.rope.scaling.type": "longrope",
    "llama.rope.scaling.alpha": 1000.0,
    "llama.logit_scale": 0.0625,
    "llama.residual_scale": 0.22,
    "llama.embedding_scale": 12.0,
    "llama.attn_logit_softcapping": 50.0,
    "llama.final_logit_softcapping": 30.0,
    "llama.use_parallel_residual": True,
    "llama.a_key_of_tomorrow": False,
}


@pytest.mark.parametrize(("key", "value"), GGUF_REFUSED.items())
def test_gguf_keys_that_change_the_mathematics(checkpoints: Any, key: str, value: Any) -> None:
    refused(changed(checkpoints("llama", "gguf"), {key: value}), UnsupportedModel, f"tiny.gguf: {key} = ")


@pytest.mark.parametrize(
    ("key", "value"), [("yarn_ext_factor", 0.5), ("yarn_attn_factor", 1.0), ("yarn_log_multiplier", 0.1)]
)
def test_gguf_yarn_variants_that_are_not_implemented(checkpoints: Any, key: str, value: float) -> None:
    key = f"llama.rope.scaling.{key}"
    refused(changed(checkpoints("llama-rope-yarn", "gguf"), {key: value}), UnsupportedModel, key)


@pytest.mark.parametrize(("form", "name"), [("gguf", "mistral"), ("gguf", "llama4"), ("safetensors", "llama4")])
def test_another_architecture(checkpoints: Any, form: str, name: str) -> None:
    refused(evolve(checkpoints("llama", form), architecture=name), UnsupportedModel, name)


HARMLESS: list[tuple[str, dict[str, Any]]] = [
    ("gguf", {"llama.expert_count": 0, "llama.expert_used_count": 0, "llama.attention.causal": True}),
    ("gguf", {"llama.attention.head_count": np.full(3, 6), "llama.attention.head_count_kv": np.full(3, 2)}),
    ("gguf", {"llama.tensor_data_layout": "Meta AI original pth", "general.file_type": 2}),
    ("gguf", {"quantize.imatrix.chunks_count": 100, "mradermacher.quantize_version": "2"}),
    ("gguf", {"llama.vocab_size": ABSENT, "general.type": ABSENT}),
    ("safetensors", {"_name_or_path": "x", "torch_dtype": "bfloat16", "quantization_config": None, "mlp_bias": False}),
    ("safetensors", {"rope_interleaved": False, "is_llama_config": True, "transformers.js_config": {"dtype": {}}}),
    ("safetensors", {"architectures": ABSENT, "sliding_window": None, "layer_types": ["full_attention"] * 3}),
    ("safetensors", {"rms_norm_eps": ABSENT, "tie_word_embeddings": ABSENT, "hidden_act": ABSENT}),
]


@pytest.mark.parametrize(("form", "changes"), HARMLESS)
def test_keys_that_change_nothing_are_accepted(checkpoints: Any, form: str, changes: dict[str, Any]) -> None:
    original = checkpoints("llama", form)
    assert LlamaModel.read(changed(original, changes)) == LlamaModel.read(original)


def test_a_hostile_key_leaves_the_message_readable(checkpoints: Any) -> None:
    checkpoint = changed(checkpoints("llama", "safetensors"), {"x\n" * 100_000: ["y" * 100_000] * 1000})
    with pytest.raises(UnsupportedModel) as caught:
        LlamaModel.read(checkpoint)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_tensors_that_nothing_would_use(checkpoints: Any) -> None:
    for form, norm in (("gguf", "blk.0.attn_norm.weight"), ("safetensors", "model.norm.weight")):
        checkpoint = checkpoints("llama", form)
        more = {**checkpoint.tensors, "blk.0.attn_sub_norm.weight": checkpoint.tensors[norm]}
        refused(evolve(checkpoint, tensors=more), UnsupportedModel, "blk.0.attn_sub_norm.weight")


def test_a_bias_in_one_layer_only(checkpoints: Any) -> None:
    checkpoint = checkpoints("llama-biases", "gguf")
    less = {name: weight for name, weight in checkpoint.tensors.items() if name != "blk.0.attn_output.bias"}
    refused(evolve(checkpoint, tensors=less), UnsupportedModel, "blk.1.attn_output.bias")


def test_old_checkpoints_may_hold_rotary_buffers(checkpoints: Any) -> None:
    checkpoint = checkpoints("llama", "safetensors")
    buffer = checkpoint.tensors["model.norm.weight"]
    more = {**checkpoint.tensors, "model.layers.0.self_attn.rotary_emb.inv_freq": buffer}
    assert LlamaModel.read(evolve(checkpoint, tensors=more)) == LlamaModel.read(checkpoint)


@pytest.mark.parametrize(
    ("form", "name", "shape"),
    [
        ("gguf", "blk.2.ffn_down.weight", "[48, 80]"),
        ("gguf", "output_norm.weight", "[48]"),
        ("gguf", "token_embd.weight", ""),
        ("safetensors", "model.layers.1.self_attn.k_proj.weight", "[16, 48]"),
        ("safetensors", "lm_head.weight", "[61, 48]"),
    ],
)
def test_missing_tensors_and_wrong_shapes(checkpoints: Any, form: str, name: str, shape: str) -> None:
    checkpoint = checkpoints("llama", form)
    less = {other: weight for other, weight in checkpoint.tensors.items() if other != name}
    refused(evolve(checkpoint, tensors=less), ModelFileError, name, shape, "missing")
    swapped = {**checkpoint.tensors, name: next(w for w in less.values() if w.shape == (80, 48))}
    refused(evolve(checkpoint, tensors=swapped), ModelFileError, "[80, 48]", "is needed")


HOSTILE: list[tuple[str, str, Any]] = [
    *(
        ("safetensors", key, value)
        for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
        for value in (0, -1, 10**400, 1.5, "48", True, [48])
    ),
    ("safetensors", "head_dim", 7),
    ("safetensors", "head_dim", 1 << 30),
    ("safetensors", "num_key_value_heads", 4),
    ("safetensors", "max_position_embeddings", ABSENT),
    ("safetensors", "hidden_size", None),
    ("safetensors", "rms_norm_eps", float("nan")),
    ("safetensors", "rms_norm_eps", -1e-5),
    ("safetensors", "attention_bias", 1),
    ("safetensors", "tie_word_embeddings", "yes"),
    ("safetensors", "rope_theta", 0),
    ("safetensors", "rope_theta", float("inf")),
    ("safetensors", "layer_types", ["full_attention"]),
    ("safetensors", "layer_types", "full_attention"),
    ("safetensors", "rope_scaling", {"rope_type": "default"}),
    ("safetensors", "rope_parameters", "linear"),
    ("safetensors", "rope_parameters", {"rope_type": "linear"}),
    ("safetensors", "rope_parameters", {"rope_type": "linear", "factor": 0.0}),
    ("safetensors", "rope_parameters", {"rope_type": 3}),
    (
        "safetensors",
        "rope_parameters",
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0},
    ),
    ("gguf", "llama.block_count", 1 << 40),
    ("gguf", "llama.block_count", 0),
    ("gguf", "llama.attention.head_count", 0),
    ("gguf", "llama.attention.head_count", np.array([], np.int32)),
    ("gguf", "llama.attention.head_count_kv", 0),
    ("gguf", "llama.attention.head_count_kv", 4),
    ("gguf", "llama.embedding_length", "big"),
    ("gguf", "llama.context_length", ABSENT),
    ("gguf", "llama.attention.layer_norm_rms_epsilon", ABSENT),
    ("gguf", "llama.attention.scale", -1.0),
    ("gguf", "llama.rope.freq_base", 1.0),
    ("gguf", "llama.rope.scaling.factor", -2.0),
    ("gguf", "llama.vocab_size", 62),
]


@pytest.mark.parametrize(("form", "key", "value"), HOSTILE)
def test_impossible_values_are_errors_of_the_file(checkpoints: Any, form: str, key: str, value: Any) -> None:
    refused(changed(checkpoints("llama", form), {key: value}), ModelFileError)


@pytest.mark.parametrize("factor", [0.0, -1.0, float("nan"), float("inf")])
def test_frequency_factors_that_cannot_divide(checkpoints: Any, runner: Any, array_weight: Any, factor: float) -> None:
    checkpoint = checkpoints("llama-rope-llama3", "gguf")
    factors = array_weight("rope_freqs.weight", [1.0, 1.0, factor, 8.0])
    with pytest.raises(ModelFileError, match=r"rope_freqs\.weight must hold positive numbers"):
        runner(evolve(checkpoint, tensors={**checkpoint.tensors, factors.name: factors}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["silu", "yarn"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
ROPE_KEYS = ("rope_type", "type", "factor", "rope_theta", "beta_fast", "low_freq_factor", "attention_factor", "mscale")


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_hostile_metadata_never_does_worse_than_an_error_of_ours(checkpoints: Any, data: st.DataObject) -> None:
    name, form = data.draw(
        st.sampled_from([("qwen3", "safetensors"), ("llama-rope-yarn", "gguf"), ("mistral", "gguf")])
    )
    checkpoint = checkpoints(name, form)
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(checkpoint.metadata)), json_values, max_size=3))
    if form == "safetensors" and data.draw(st.booleans()):
        changes["rope_parameters"] = data.draw(st.dictionaries(st.sampled_from(ROPE_KEYS), json_values, max_size=5))
    try:
        config, _ = LlamaModel.read(changed(checkpoint, changes))
    except (ModelFileError, UnsupportedModel):
        return
    assert all(math.isfinite(frequency) for frequency in config.rope.inverse_frequencies())
