"""Registering costs nothing; loading hands every weight over once."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import forge_llama
import numpy as np
import pytest
from attrs import evolve
from forge_llama.model import LlamaModel

from forge.interfaces.backend import Backend, Prepared, Use
from forge.interfaces.loader import Weight


class Watched(Backend):
    """The plain backend, and what it was asked to prepare."""

    def __init__(self) -> None:
        super().__init__()
        self.prepared: list[tuple[tuple[str, ...], frozenset[Use]]] = []

    def prepare(self, parts: Sequence[Weight], uses: Collection[Use]) -> Prepared:
        self.prepared.append((tuple(part.name for part in parts), frozenset(uses)))
        return super().prepare(parts, uses)


def test_registering_imports_no_tensor_library() -> None:
    program = (
        "import sys, forge_llama; found = forge_llama.forge_models(); "
        "print(*(c.name for c in found)); assert not {'torch', 'numpy', 'gguf'} & sys.modules.keys()"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == ["llama", "mistral", "qwen2", "qwen3"]


def test_every_component_names_the_class() -> None:
    assert {component.factory for component in forge_llama.forge_models()} == {
        f"{LlamaModel.__module__}:{LlamaModel.__name__}"
    }


@pytest.mark.parametrize(("name", "form"), [("llama-tied", "gguf"), ("llama-tied", "safetensors")])
def test_a_tied_table_is_prepared_once_for_both_uses(checkpoints: Any, name: str, form: str) -> None:
    checkpoint = checkpoints(name, form)
    backend = Watched()
    model = LlamaModel(checkpoint, backend)
    assert model.embedding is model.head
    table = "token_embd.weight" if form == "gguf" else "model.embed_tokens.weight"
    assert [uses for parts, uses in backend.prepared if table in parts] == [{"linear", "embedding"}]


def test_every_matrix_is_prepared_once_and_fused_where_the_input_is_shared(checkpoints: Any) -> None:
    checkpoint = checkpoints("llama", "gguf")
    backend = Watched()
    LlamaModel(checkpoint, backend)
    times = Counter(name for parts, _ in backend.prepared for name in parts)
    matrices = {name for name, weight in checkpoint.tensors.items() if len(weight.shape) == 2}
    assert times == dict.fromkeys(matrices, 1)
    fused = [parts for parts, _ in backend.prepared]
    assert ("blk.1.attn_q.weight", "blk.1.attn_k.weight", "blk.1.attn_v.weight") in fused
    assert ("blk.1.ffn_gate.weight", "blk.1.ffn_up.weight") in fused


def test_a_checkpoint_with_both_tables_uses_both(checkpoints: Any, references: Any, runner: Any, expected: Any) -> None:
    checkpoint = checkpoints("llama", "safetensors")
    said_tied = evolve(checkpoint, metadata={**checkpoint.metadata, "tie_word_embeddings": True})
    tokens = [5, 7, 11]
    found = runner(said_tied).logits(tokens, 3)
    np.testing.assert_allclose(found, expected(references("llama"), tokens), rtol=0, atol=1e-4)


def test_gguf_attention_scale_replaces_the_usual_one(
    checkpoints: Any, references: Any, runner: Any, expected: Any
) -> None:
    checkpoint = checkpoints("llama", "gguf")
    scaled = evolve(checkpoint, metadata={**checkpoint.metadata, "llama.attention.scale": 0.5})
    reference, tokens = references("llama"), [5, 7, 11, 13, 17]
    layers = [layer.self_attn for layer in reference.model.layers]
    before = layers[0].scaling
    try:
        for layer in layers:
            layer.scaling = 0.5
        wanted = expected(reference, tokens)
    finally:
        for layer in layers:
            layer.scaling = before
    np.testing.assert_allclose(runner(scaled).logits(tokens, 5), wanted, rtol=0, atol=1e-4)


def test_the_cache_is_told_what_each_layer_keeps(checkpoints: Any) -> None:
    model = LlamaModel(checkpoints("qwen2-upper-windows", "safetensors"), Backend())
    assert [(kv.kv_heads, kv.k_dim, kv.v_dim, kv.window) for kv in model.kv_spec()] == [
        (2, 8, 8, None),
        (2, 8, 8, 5),
        (2, 8, 8, 5),
    ]
    assert (model.vocab_size, model.context_length) == (61, 256)
