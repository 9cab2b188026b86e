"""Logits equal those of transformers, however the prompt is cut and whatever else is in the batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers

from forge.builtin.safetensors import SafeTensorsLoader

MODELS = (
    "llama",
    "llama-tied",
    "llama-biases",
    "llama-rope-llama3",
    "llama-rope-linear",
    "llama-rope-yarn",
    "mistral",
    "mistral-no-window",
    "qwen2",
    "qwen3",
)
MIXED_WINDOWS = ("qwen2-upper-windows", "qwen3-mixed-layers")  # GGUF can't say this
CASES = [
    *((name, form) for name in MODELS for form in ("safetensors", "gguf")),
    *((name, "safetensors") for name in MIXED_WINDOWS),
]
TOLERANCE = 3e-4  # found: at most 6e-5; logits reach 9, and any mistake in a formula shows as 0.3 or more
LENGTHS = (1, 7, 33, 100)


def prompt(length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(0, 61, length).tolist()
    return found


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_prompt_alone_whole_or_in_chunks(
    name: str, form: str, references: Any, checkpoints: Any, runner: Any, expected: Any
) -> None:
    run = runner(checkpoints(name, form))
    for length in LENGTHS:
        tokens = prompt(length)
        wanted = expected(references(name), tokens)
        assert np.abs(wanted).max() > 1  # the comparison is of something
        for chunk in (length, 7):
            np.testing.assert_allclose(run.logits(tokens, chunk), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_a_prompt_token_by_token(
    name: str, form: str, references: Any, checkpoints: Any, runner: Any, expected: Any
) -> None:
    tokens = prompt(40, seed=1)
    found = runner(checkpoints(name, form)).logits(tokens, 1)
    np.testing.assert_allclose(found, expected(references(name), tokens), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("name", "form"), CASES)
@pytest.mark.parametrize("shape", [{"block_size": 4, "num_blocks": 64}, {"block_size": 128, "num_blocks": 4}])
def test_prompts_of_several_sequences_mixed_with_decodes(
    name: str, form: str, shape: dict[str, int], references: Any, checkpoints: Any, runner: Any, expected: Any
) -> None:
    run = runner(checkpoints(name, form), **shape)
    prompts = [prompt(length, seed=length) for length in (33, 9, 60, 21)]
    a, b, c, d = (run.sequence(tokens) for tokens in prompts)
    steps = [
        [(a, 20), (b, 1)],
        [(b, 1), (c, 30), (a, 1)],
        [(a, 1), (d, 13), (b, 7), (c, 1)],
        [(c, 1), (a, 1), (d, 8)],
        [(a, 10), (c, 28)],
    ]
    found: dict[int, list[Any]] = {seq.id: [] for seq in (a, b, c, d)}
    for step in steps:
        for (seq, _), logits in zip(step, run.step(*step), strict=True):
            found[seq.id].append(logits)
    for seq, tokens in zip((a, b, c, d), prompts, strict=True):
        wanted = expected(references(name), tokens)
        np.testing.assert_allclose(np.concatenate(found[seq.id]), wanted, rtol=0, atol=TOLERANCE)


def test_a_sharded_checkpoint(references: Any, checkpoints: Any, runner: Any, expected: Any) -> None:
    checkpoint = checkpoints("llama", "sharded")
    assert len(list(checkpoint.path.glob("*.safetensors"))) > 1
    tokens = prompt(33)
    found = runner(checkpoint).logits(tokens, 33)
    np.testing.assert_allclose(found, expected(references("llama"), tokens), rtol=0, atol=TOLERANCE)


def test_weights_in_bfloat16(references: Any, runner: Any, expected: Any, tmp_path: Path) -> None:
    copy.deepcopy(references("qwen3")).bfloat16().save_pretrained(tmp_path)
    rounded = transformers.Qwen3ForCausalLM.from_pretrained(tmp_path, dtype="float32")
    tokens = prompt(33)
    found = runner(SafeTensorsLoader().open(tmp_path)).logits(tokens, 33)
    np.testing.assert_allclose(found, expected(rounded, tokens), rtol=0, atol=TOLERANCE)


def test_windows_hide_what_they_should(references: Any, expected: Any) -> None:
    """The reference itself: a token further back than all windows together reach doesn't change the last logits."""
    layers, window = 3, 9
    reach = layers * (window - 1)
    tokens = prompt(reach + 2)
    changed = [(tokens[0] + 1) % 61, *tokens[1:]]
    first, second = (expected(references("mistral"), ids)[-1] for ids in (tokens, changed))
    np.testing.assert_allclose(first, second, rtol=0, atol=1e-5)
    seen = [tokens[0], (tokens[1] + 1) % 61, *tokens[2:]]
    assert np.abs(expected(references("mistral"), seen)[-1] - first).max() > 1e-4


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_only_the_rows_asked_for_reach_the_output_layer(
    name: str, references: Any, checkpoints: Any, runner: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runner(checkpoints(name, "gguf"))
    rows_of_head: list[int] = []
    linear: Callable[..., Any] = run.backend.linear

    def counted(x: Any, weights: Any, bias: Any = None) -> Any:
        if weights is run.model.head:
            rows_of_head.append(len(x))
        return linear(x, weights, bias)

    monkeypatch.setattr(run.backend, "linear", counted)
    tokens = prompt(100)
    seq = run.sequence(tokens)
    seq.prompt_logprobs = False
    assert run.slabs((seq, 99)) == []  # a chunk that isn't the last
    [logits] = run.slabs((seq, 1))
    np.testing.assert_allclose(logits, expected(references(name), tokens)[-1:], rtol=0, atol=TOLERANCE)
    assert rows_of_head == [1]
    run.logits(tokens, 100)
    assert rows_of_head == [1, 64, 36]  # scoring a long prompt never makes all logits at once
