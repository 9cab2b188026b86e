"""Rotary frequencies equal those of transformers for every scaling, in both spellings of config.json and in GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from forge_llama.config_gguf import read_gguf
from forge_llama.config_huggingface import read_huggingface
from forge_llama.rope import Rope
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from forge.interfaces.loader import Checkpoint, GenerationDefaults, TokenizerSource, Weight

DIMENSIONS = {
    "hidden_size": 64,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 8,
    "max_position_embeddings": 4096,
}

thetas = st.floats(100, 1e7)
factors = st.floats(1, 64)
contexts = st.integers(64, 1 << 17)
linear = st.fixed_dictionaries({"rope_type": st.just("linear"), "factor": factors})
llama3 = st.builds(
    lambda factor, low, width, context: {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": low + width,
        "original_max_position_embeddings": context,
    },
    factors,
    st.floats(0.5, 4),
    st.floats(0.5, 8),
    contexts,
)
yarn = st.fixed_dictionaries(
    {"rope_type": st.just("yarn"), "factor": factors, "original_max_position_embeddings": contexts},
    optional={
        "beta_fast": st.floats(16, 64),
        "beta_slow": st.floats(0.5, 4),
        "attention_factor": st.floats(0.5, 2),
        "mscale": st.floats(0.5, 2),
        "mscale_all_dim": st.floats(0.5, 2),
        "truncate": st.booleans(),
    },
)


def huggingface(**keys: Any) -> Checkpoint:
    metadata = {**DIMENSIONS, **keys}
    source = TokenizerSource("huggingface")
    return Checkpoint("safetensors", Path("tiny"), "llama", metadata, {}, source, GenerationDefaults())


def transformers_rope(head_dim: int, parameters: dict[str, Any]) -> tuple[Any, float]:
    config = transformers.LlamaConfig(**DIMENSIONS, head_dim=head_dim, rope_parameters=dict(parameters))
    rotary = LlamaRotaryEmbedding(config)
    return rotary.inv_freq.numpy(), rotary.attention_scaling


def assert_same(rope: Rope, wanted: tuple[Any, float]) -> None:
    np.testing.assert_allclose(rope.inverse_frequencies(), wanted[0], rtol=2e-5)  # theirs are rounded to float32
    assert rope.magnitude == pytest.approx(wanted[1])


@settings(max_examples=100, deadline=None)
@given(thetas, st.sampled_from([16, 64, 128]), st.one_of(st.just({"rope_type": "default"}), linear, llama3, yarn))
def test_both_spellings_give_the_frequencies_of_transformers(
    theta: float, head_dim: int, scaling: dict[str, Any]
) -> None:
    wanted = transformers_rope(head_dim, {"rope_theta": theta, **scaling})
    new = huggingface(head_dim=head_dim, rope_parameters={"rope_theta": theta, **scaling})
    assert_same(read_huggingface(new).rope, wanted)
    old = huggingface(head_dim=head_dim, rope_theta=theta, rope_scaling=scaling)
    assert_same(read_huggingface(old).rope, wanted)


def test_the_oldest_spelling_of_the_type() -> None:
    old = huggingface(rope_scaling={"type": "linear", "factor": 4.0})
    wanted = transformers_rope(32, {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0})
    assert_same(read_huggingface(old).rope, wanted)


@pytest.mark.parametrize("rope", [{}, {"rope_scaling": None}, {"rope_scaling": {}}, {"rope_parameters": None}])
def test_no_scaling_however_it_is_written(rope: dict[str, Any]) -> None:
    wanted = transformers_rope(32, {"rope_type": "default", "rope_theta": 5e5})
    assert_same(read_huggingface(huggingface(rope_theta=5e5, **rope)).rope, wanted)


def test_the_original_context_defaults_to_the_context() -> None:
    scaling = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
    assert_same(read_huggingface(huggingface(rope_parameters=scaling)).rope, transformers_rope(32, scaling))


@pytest.fixture
def gguf_rope(array_weight: Callable[[str, Any], Weight]) -> Callable[..., Rope]:
    """The rotation that a Llama GGUF with the given ``llama.rope.*`` keys asks for."""

    def rope(**keys: Any) -> Rope:
        metadata = {
            "block_count": 1,
            "context_length": 4096,
            "embedding_length": 64,
            "feed_forward_length": 8,
            "attention.head_count": 2,
            "attention.layer_norm_rms_epsilon": 1e-5,
            "rope.freq_base": 5e5,
            **{f"rope.{key}": value for key, value in keys.items()},
        }
        own = {f"llama.{key}": value for key, value in metadata.items()}
        table = array_weight("token_embd.weight", np.zeros((8, 64)))
        source = TokenizerSource("gguf")
        defaults = GenerationDefaults()
        return read_gguf(
            Checkpoint("gguf", Path("tiny.gguf"), "llama", own, {table.name: table}, source, defaults)
        ).rope

    return rope


def test_gguf_yarn_with_its_own_ramp(gguf_rope: Callable[..., Rope]) -> None:
    rope = gguf_rope(
        **{
            "scaling.type": "yarn",
            "scaling.factor": 8.0,
            "scaling.original_context_length": 2048,
            "scaling.yarn_beta_fast": 20.0,
            "scaling.yarn_beta_slow": 2.0,
        }
    )
    parameters = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 2048}
    assert_same(rope, transformers_rope(32, {**parameters, "beta_fast": 20.0, "beta_slow": 2.0}))
    assert rope.interleaved


@pytest.mark.parametrize(
    "keys", [{"scaling.type": "linear", "scaling.factor": 4.0}, {"scaling.factor": 4.0}, {"scale_linear": 4.0}]
)
def test_gguf_linear_scaling_in_its_three_spellings(gguf_rope: Callable[..., Rope], keys: dict[str, Any]) -> None:
    assert_same(gguf_rope(**keys), transformers_rope(32, {"rope_type": "linear", "rope_theta": 5e5, "factor": 4.0}))


@pytest.mark.parametrize("keys", [{}, {"scaling.type": "none", "scaling.factor": 4.0}, {"scaling.factor": 0.0}])
def test_gguf_without_scaling(gguf_rope: Callable[..., Rope], keys: dict[str, Any]) -> None:
    assert_same(gguf_rope(**keys), transformers_rope(32, {"rope_type": "default", "rope_theta": 5e5}))


def test_gguf_attention_factor_multiplies(gguf_rope: Callable[..., Rope]) -> None:
    assert gguf_rope(**{"scaling.attn_factor": 1.5}).magnitude == 1.5
