"""The real model: SmolLM2's GGUF, against transformers on the same dequantised weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from gguf.quants import dequantize

from forge.builtin.gguf import GGUFLoader

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived an old fisherman who told the same story every evening.",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) +",
    "Übermorgen fährt der Zug um 7:45 Uhr nach Köln; 東京は日本の首都です。 " * 3,
)
TOLERANCE = 1e-3

MODULES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
GLOBALS = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}


def transformers_name(name: str) -> str:
    if name in GLOBALS:
        return GLOBALS[name]
    _, layer, part, kind = name.split(".")
    return f"model.layers.{layer}.{MODULES[part]}.{kind}"


@pytest.fixture(scope="module")
def reader(smollm2_path: Path) -> gguf.GGUFReader:
    return gguf.GGUFReader(smollm2_path)


@pytest.fixture(scope="module")
def reference(reader: gguf.GGUFReader, unpermute: Callable[[Any, int], Any]) -> Any:
    """Read with the `gguf` package alone."""

    def key(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    heads, kv_heads = key("attention.head_count"), key("attention.head_count_kv")
    config = transformers.LlamaConfig(
        vocab_size=key("vocab_size"),
        hidden_size=key("embedding_length"),
        intermediate_size=key("feed_forward_length"),
        num_hidden_layers=key("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=key("context_length"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": key("rope.freq_base")},
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    weights = {}
    for tensor in reader.tensors:
        array = dequantize(tensor.data, tensor.tensor_type)
        if "attn_q." in tensor.name:
            array = unpermute(array, heads)
        if "attn_k." in tensor.name:
            array = unpermute(array, kv_heads)
        weights[transformers_name(tensor.name)] = torch.from_numpy(np.array(array, np.float32))
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    model.load_state_dict(weights, assign=True)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # its frequencies aren't among the weights
    return model.eval()


@pytest.fixture(scope="module")
def prompts(reader: gguf.GGUFReader) -> list[list[int]]:
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(merge.split(" ")) for merge in reader.fields["tokenizer.ggml.merges"].contents()]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [tokenizer.encode(text).ids for text in TEXTS]


@pytest.mark.model
def test_smollm2_answers_like_transformers(
    smollm2_path: Path, reference: Any, prompts: list[list[int]], runner: Any, expected: Any
) -> None:
    run = runner(GGUFLoader().open(smollm2_path))
    wanted = [expected(reference, tokens) for tokens in prompts]
    for tokens, logits in zip(prompts, wanted, strict=True):
        np.testing.assert_allclose(run.logits(tokens, len(tokens)), logits, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(run.logits(prompts[1], 7), wanted[1], rtol=0, atol=TOLERANCE)

    a, b, c = (run.sequence(tokens) for tokens in prompts[:3])
    found: dict[int, list[Any]] = {seq.id: [] for seq in (a, b, c)}
    steps = ([(a, 4), (b, 10)], [(b, 1), (a, 1), (c, 20)], [(c, len(prompts[2]) - 20), (b, len(prompts[1]) - 11)])
    for step in steps:
        for (seq, _), logits in zip(step, run.step(*step), strict=True):
            found[seq.id].append(logits)
    for seq, logits in zip((a, b, c), wanted, strict=False):
        np.testing.assert_allclose(np.concatenate(found[seq.id]), logits, rtol=0, atol=TOLERANCE)
