"""What a model of the Llama family is, whatever file it came from. No tensors, no file formats."""

from __future__ import annotations

from attrs import frozen

from forge.errors import ModelFileError
from forge_llama.rope import Rope

# A file may claim anything. These bounds, some orders above the largest models, keep loops and products harmless; what
# is allocated is bounded by the tensors that are really there, since their shapes must agree.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 12
MAX_VOCABULARY = 1 << 24
MAX_CONTEXT = 1 << 30
MIN_EPS, MAX_EPS = 1e-12, 1e-1
MIN_THETA, MAX_THETA = 1.001, 1e15
MIN_FACTOR, MAX_FACTOR = 1e-3, 1e6


@frozen
class LlamaConfig:
    """Dimensions and variants. windows: for each layer, how many last positions it sees (None: all).

    tied: the output layer is the embedding table. frequency_factors: the file has the tensor ``rope_freqs.weight``.
    """

    vocab_size: int
    context_length: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    attention_scale: float
    rope: Rope
    windows: tuple[int | None, ...]
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    frequency_factors: bool = False

    @property
    def layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.windows)


def check_heads(place: str, heads: int, kv_heads: int, head_dim: int) -> None:
    """Refuse heads that can't be grouped or rotated. Errors: `ModelFileError`."""
    if heads % kv_heads:
        raise ModelFileError(f"{place}: {heads} attention heads can't share {kv_heads} KV heads evenly")
    if head_dim % 2:
        raise ModelFileError(f"{place}: heads of {head_dim} numbers can't be rotated in pairs")


def even_head_dim(place: str, hidden: int, heads: int) -> int:
    """The size of a head where the file doesn't say: the hidden size shared among heads. Errors: `ModelFileError`."""
    if hidden % heads:
        raise ModelFileError(f"{place}: a hidden size of {hidden} isn't divisible by {heads} attention heads")
    return hidden // heads
