"""The Llama family's forward pass, in a backend's coarse operations, and the placing of its weights.

One class serves all architectures: `LlamaConfig` says what a checkpoint has. Knows no file format and no kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from forge.errors import ModelFileError
from forge.interfaces.backend import Backend, Prepared, StepInputs, Vector, slabs
from forge.interfaces.layers import AttentionSpec, DecoderLayer, DecoderStack, LayerSpec, RopeSpec
from forge.interfaces.loader import Checkpoint, Weight
from forge.interfaces.model import LOGIT_ROWS, LayerKV, Model
from forge_llama.config import LlamaConfig
from forge_llama.config_gguf import read_gguf
from forge_llama.config_huggingface import read_huggingface
from forge_llama.names import GGUF, HUGGING_FACE, Names, check_tensors, wanted_shapes

if TYPE_CHECKING:
    import torch


class LlamaModel(Model):
    """A Llama, Mistral, Qwen2 or Qwen3 on a backend."""

    vocab_size: int
    context_length: int

    @classmethod
    def read(cls, checkpoint: Checkpoint) -> tuple[LlamaConfig, Mapping[str, tuple[int, ...]]]:
        config = read_gguf(checkpoint) if checkpoint.format == "gguf" else read_huggingface(checkpoint)
        names = _names(checkpoint)
        shapes = wanted_shapes(config, names)
        check_tensors(checkpoint.tensors, shapes, names, checkpoint.path.name)
        return config, shapes

    def __init__(self, checkpoint: Checkpoint, backend: Backend) -> None:
        config, _ = self.read(checkpoint)
        self.config = config
        self.backend = backend
        self.vocab_size = config.vocab_size
        self.context_length = config.context_length
        names, tensors = _names(checkpoint), checkpoint.tensors
        self.specs = _specs(config, _frequency_factors(config, names, tensors))
        self.embedding, self.head = self._tables(names, tensors)
        self.layers = tuple(self._layer(index, names, tensors) for index in range(config.layers))
        self.final_norm = backend.vector([tensors[names.final_norm]])
        self._stack = DecoderStack(
            self.embedding, self.layers, self.specs, self.final_norm, config.norm_eps, head=self.head
        )

    def kv_spec(self) -> tuple[LayerKV, ...]:
        config = self.config
        return tuple(
            LayerKV(config.kv_heads, config.head_dim, config.head_dim, window=window) for window in config.windows
        )

    def stack(self) -> DecoderStack:
        return self._stack

    def forward(self, inputs: StepInputs) -> torch.Tensor:
        x = self.backend.embedding(self.embedding, inputs.token_ids)
        for layer, spec in zip(self.layers, self.specs, strict=True):
            x = self.backend.decoder_layer(x, layer, spec, inputs)
        return self.backend.rms_norm(x[inputs.output_rows], self.final_norm, self.config.norm_eps)

    def logits(self, hidden: torch.Tensor) -> Iterator[torch.Tensor]:
        for rows in slabs(hidden, LOGIT_ROWS):
            yield self.backend.linear(rows, self.head)

    def _tables(self, names: Names, tensors: Mapping[str, Weight]) -> tuple[Prepared, Prepared]:
        """Embedding and output layer, which may be one and the same."""
        if self.config.tied:
            both = self.backend.prepare([tensors[names.embedding]], {"embedding", "linear"})
            return both, both
        return (
            self.backend.prepare([tensors[names.embedding]], {"embedding"}),
            self.backend.prepare([tensors[names.head]], {"linear"}),
        )

    def _layer(self, index: int, names: Names, tensors: Mapping[str, Weight]) -> DecoderLayer:
        config, backend = self.config, self.backend

        def matrix(*parts: str) -> Prepared:
            return backend.prepare([tensors[names.of(index, part)] for part in parts], {"linear"})

        def vector(part: str) -> Vector:
            return backend.vector([tensors[names.of(index, part)]])

        def bias(present: bool, *parts: str) -> Vector | None:
            return backend.vector([tensors[names.of(index, part, "bias")] for part in parts]) if present else None

        return DecoderLayer(
            index=index,
            attention_norm=vector(names.attention_norm),
            qkv=matrix(names.q, names.k, names.v),
            output=matrix(names.output),
            mlp_norm=vector(names.mlp_norm),
            gate_up=matrix(names.gate, names.up),
            down=matrix(names.down),
            qkv_bias=bias(config.qkv_bias, names.q, names.k, names.v),
            output_bias=bias(config.output_bias, names.output),
            gate_up_bias=bias(config.mlp_bias, names.gate, names.up),
            down_bias=bias(config.mlp_bias, names.down),
            q_norm=vector(names.q_norm) if config.qk_norm else None,
            k_norm=vector(names.k_norm) if config.qk_norm else None,
        )


def _names(checkpoint: Checkpoint) -> Names:
    return GGUF if checkpoint.format == "gguf" else HUGGING_FACE


def _frequency_factors(config: LlamaConfig, names: Names, tensors: Mapping[str, Weight]) -> list[float] | None:
    """What the rotary frequencies are divided by. Errors: `ModelFileError` for what can't be a divisor."""
    if not config.frequency_factors or names.frequency_factors is None:
        return None
    factors: list[float] = tensors[names.frequency_factors].dequantize().tolist()
    if not all(math.isfinite(factor) and factor > 0 for factor in factors):
        raise ModelFileError(f"tensor {names.frequency_factors} must hold positive numbers")
    return factors


def _specs(config: LlamaConfig, factors: list[float] | None) -> tuple[LayerSpec, ...]:
    """What each layer computes; layers differ only in their windows."""
    rope = RopeSpec(config.rope.inverse_frequencies(factors), config.rope.interleaved, config.rope.magnitude)

    def spec(window: int | None) -> LayerSpec:
        return LayerSpec(
            attention=AttentionSpec(
                config.heads, config.kv_heads, config.head_dim, config.head_dim, config.attention_scale, window
            ),
            rope=rope,
            norm_eps=config.norm_eps,
            qkv_bias=config.qkv_bias,
            output_bias=config.output_bias,
            mlp_bias=config.mlp_bias,
            qk_norm=config.qk_norm,
        )

    by_window = {window: spec(window) for window in set(config.windows)}
    return tuple(by_window[window] for window in config.windows)
