"""What a decoder layer is: frozen descriptions of its arithmetic, which model families write and backends read.

Every default means *absent*; a fused operation asks `serves` before it takes a layer on.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

if TYPE_CHECKING:
    from forge.interfaces.backend import Prepared, Vector


@frozen
class RopeSpec:
    """Rotary position embedding (Su et al., 2021, https://arxiv.org/abs/2104.09864).

    inverse_frequencies: one for each rotated pair, scaling (linear, YaRN, Llama 3) already applied. interleaved: pairs
    are neighbours (2i, 2i + 1), as GGUF's Llama files have them, rather than halves (i, i + dim / 2). magnitude: factor
    on sine and cosine (YaRN's attention factor).
    """

    inverse_frequencies: tuple[float, ...]
    interleaved: bool = False
    magnitude: float = 1.0

    @property
    def dim(self) -> int:
        """How many leading numbers of a head are rotated."""
        return 2 * len(self.inverse_frequencies)


@frozen
class AttentionSpec:
    """One layer's attention. `scale` multiplies the scores; `window`: how many last positions a query sees, its own
    included (None: all).
    """

    heads: int
    kv_heads: int
    k_dim: int
    v_dim: int
    scale: float
    window: int | None = None


@frozen
class LayerSpec:
    """What a decoder layer computes. Every default means *absent*: see `serves`."""

    attention: AttentionSpec
    rope: RopeSpec
    norm_eps: float
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False


def serves(spec: Any, handled: Collection[str]) -> bool:
    """Whether every field of an attrs spec outside `handled` has its default value, which means that it's absent.

    A fused override begins with ``if not serves(spec, HANDLED): return super().op(...)``, so that a field added later
    can't be ignored by it.
    """
    return all(getattr(spec, a.name) == a.default for a in attrs.fields(type(spec)) if a.name not in handled)


@frozen
class DecoderLayer:
    """The weights of one pre-norm decoder layer. `index` finds its pages. Vectors are as `Backend.vector` makes them;
    None: absent.
    """

    index: int
    attention_norm: Vector
    qkv: Prepared
    output: Prepared
    mlp_norm: Vector
    gate_up: Prepared
    down: Prepared
    qkv_bias: Vector | None = None
    output_bias: Vector | None = None
    gate_up_bias: Vector | None = None
    down_bias: Vector | None = None
    q_norm: Vector | None = None
    k_norm: Vector | None = None


@frozen
class DecoderStack:
    """A model that is an embedding, decoder layers and a final norm, one after the other, and nothing else: what a
    backend needs to run it in one call. specs: one a layer. head: the output layer, if `Model.logits` is its product
    with the hidden states and nothing else; None: it's more than that.
    """

    embedding: Prepared
    layers: tuple[DecoderLayer, ...]
    specs: tuple[LayerSpec, ...]
    final_norm: Vector
    norm_eps: float
    head: Prepared | None = None
