"""Tensor names of the Llama family in GGUF files and in Hugging Face directories, and the shapes they must have."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from attrs import frozen

from forge.errors import ModelFileError, UnsupportedModel
from forge.interfaces.loader import Weight
from forge_llama.config import LlamaConfig
from forge_llama.metadata import shown


@frozen
class Names:
    """One format's names. The fields after `layer` are parts of a layer, without ``.weight`` or ``.bias``.

    layer: a pattern for a layer's prefix. harmless: tensors that nothing needs. frequency_factors: what rotary
    frequencies are divided by, where the format has such a tensor.
    """

    embedding: str
    final_norm: str
    head: str
    layer: str
    attention_norm: str
    q: str
    k: str
    v: str
    output: str
    q_norm: str
    k_norm: str
    mlp_norm: str
    gate: str
    up: str
    down: str
    harmless: re.Pattern[str] | None = None
    frequency_factors: str | None = None

    def of(self, layer: int, part: str, kind: Literal["weight", "bias"] = "weight") -> str:
        """The name of one layer's part."""
        return f"{self.layer.format(layer)}{part}.{kind}"


GGUF = Names(
    embedding="token_embd.weight",
    final_norm="output_norm.weight",
    head="output.weight",
    layer="blk.{}.",
    attention_norm="attn_norm",
    q="attn_q",
    k="attn_k",
    v="attn_v",
    output="attn_output",
    q_norm="attn_q_norm",
    k_norm="attn_k_norm",
    mlp_norm="ffn_norm",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
    frequency_factors="rope_freqs.weight",
)
"""https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#standardized-tensor-names"""

HUGGING_FACE = Names(
    embedding="model.embed_tokens.weight",
    final_norm="model.norm.weight",
    head="lm_head.weight",
    layer="model.layers.{}.",
    attention_norm="input_layernorm",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    output="self_attn.o_proj",
    q_norm="self_attn.q_norm",
    k_norm="self_attn.k_norm",
    mlp_norm="post_attention_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    # Older checkpoints hold the buffer that rotary frequencies were kept in; config.json says the same.
    harmless=re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"),
)


def wanted_shapes(config: LlamaConfig, names: Names) -> dict[str, tuple[int, ...]]:
    """Every tensor that the model needs, by name."""
    hidden, intermediate = config.hidden, config.intermediate
    q_rows, kv_rows = config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        names.embedding: (config.vocab_size, hidden),
        names.final_norm: (hidden,),
    }
    if not config.tied:
        shapes[names.head] = (config.vocab_size, hidden)
    if config.frequency_factors and names.frequency_factors:
        shapes[names.frequency_factors] = (config.rope.dim // 2,)
    matrices = {
        names.q: (q_rows, hidden, config.qkv_bias),
        names.k: (kv_rows, hidden, config.qkv_bias),
        names.v: (kv_rows, hidden, config.qkv_bias),
        names.output: (hidden, q_rows, config.output_bias),
        names.gate: (intermediate, hidden, config.mlp_bias),
        names.up: (intermediate, hidden, config.mlp_bias),
        names.down: (hidden, intermediate, config.mlp_bias),
    }
    vectors = {names.attention_norm: hidden, names.mlp_norm: hidden}
    if config.qk_norm:
        vectors |= {names.q_norm: config.head_dim, names.k_norm: config.head_dim}
    for layer in range(config.layers):
        for part, (rows, columns, bias) in matrices.items():
            shapes[names.of(layer, part)] = (rows, columns)
            if bias:
                shapes[names.of(layer, part, "bias")] = (rows,)
        for part, length in vectors.items():
            shapes[names.of(layer, part)] = (length,)
    return shapes


def check_tensors(found: Mapping[str, Weight], wanted: Mapping[str, tuple[int, ...]], names: Names, place: str) -> None:
    """Compare a checkpoint's tensors with the wanted ones.

    Errors: `UnsupportedModel` for a tensor that nothing would use; `ModelFileError` for a missing one or a wrong shape.
    """
    for name in found:
        if name not in wanted and not (names.harmless and names.harmless.fullmatch(name)):
            raise UnsupportedModel(
                f"{place}: tensor {shown(name)} is unknown: without it the model would compute something else"
            )
    for name, shape in wanted.items():
        if name not in found:
            raise ModelFileError(f"{place}: tensor {name} of shape {list(shape)} is missing")
        if tuple(found[name].shape) != shape:
            raise ModelFileError(
                f"{place}: tensor {name} has shape {list(found[name].shape)}, but {list(shape)} is needed"
            )
