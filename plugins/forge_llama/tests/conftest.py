"""Tiny random models made with transformers, the same in Forge's file formats, and a way to run them step by step."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import torch
import transformers
from attrs import define, field, frozen
from forge_llama.model import LlamaModel

from forge.builtin.gguf import GGUFLoader
from forge.builtin.safetensors import SafeTensorsLoader
from forge.interfaces.backend import Backend, Pages
from forge.interfaces.kv_cache import CacheShape
from forge.interfaces.loader import Checkpoint, Weight
from forge.interfaces.sampler import SamplingParams
from forge.interfaces.scheduler import Batch, Span

Floats = npt.NDArray[np.float32]

# --------------------------------------------------------------------------------------------------------- the models

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}

CONFIGS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 6}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 12, "num_key_value_heads": 1}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 3.0}}),
    "llama-rope-yarn": ("Llama", {"rope_parameters": YARN_ROPE}),
    "mistral": ("Mistral", {"sliding_window": 9}),
    "mistral-no-window": ("Mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2-upper-windows": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1, "rope_parameters": YARN_ROPE},
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3-mixed-layers": (
        "Qwen3",
        {
            "head_dim": 10,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
}

NOT_IN_GGUF = frozenset({"qwen2-upper-windows", "qwen3-mixed-layers"})
"""GGUF has one window for all layers."""


def make_reference(family: str, changes: Mapping[str, Any]) -> Any:
    """A transformers model with random weights, norms and biases, so that each of them shows in the logits."""
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **changes})
    config._attn_implementation = "eager"
    torch.manual_seed(sum(map(ord, family)))
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.25)
            else:
                parameter.normal_(mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
    return model


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products are faster alone, and the tests may share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def references() -> Callable[[str], Any]:
    """A transformers model by its name in `CONFIGS`."""
    made: dict[str, Any] = {}

    def reference(name: str) -> Any:
        if name not in made:
            made[name] = make_reference(*CONFIGS[name])
        return made[name]

    return reference


# ----------------------------------------------------------------------------------------------------------- the files

GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    stem, _, kind = name.rpartition(".")
    if stem.startswith("model.layers."):
        layer, part = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{layer}.{GGUF_NAMES[part]}.{kind}"
    return f"{GGUF_NAMES[stem]}.{kind}"


def neighbouring_pairs(rows: Floats, heads: int) -> Floats:
    """Reorder each head's rows so that the pairs (i, i + dim / 2) become neighbours, as converters do for Llama."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def halved_pairs(rows: Floats, heads: int) -> Floats:
    """The inverse of `neighbouring_pairs`."""
    pairs = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def gguf_tensors(reference: Any, arch: str) -> dict[str, Floats]:
    config, tensors = reference.config, {}
    for name, value in reference.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        array = value.numpy()
        if arch == "llama" and ".q_proj." in name:
            array = neighbouring_pairs(array, config.num_attention_heads)
        if arch == "llama" and ".k_proj." in name:
            array = neighbouring_pairs(array, config.num_key_value_heads)
        tensors[gguf_name(name)] = array
    rope = config.rope_parameters
    if rope["rope_type"] == "llama3":
        scaled = reference.model.rotary_emb.inv_freq.double().numpy()
        plain = rope["rope_theta"] ** -(np.arange(len(scaled)) / len(scaled))
        tensors["rope_freqs.weight"] = (plain / scaled).astype(np.float32)
    return tensors


def write_gguf(path: Path, reference: Any) -> Path:
    """The model as llama.cpp's converter would write it."""
    config = reference.config
    arch = {"mistral": "llama"}.get(config.model_type, config.model_type)
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name("tiny")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
        writer.add_rope_dimension_count(head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    rope = config.rope_parameters
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    for name, tensor in gguf_tensors(reference, arch).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="session")
def checkpoints(
    references: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Checkpoint]:
    """A model's checkpoint by name and format: "gguf", "safetensors" or "sharded"."""
    paths: dict[tuple[str, str], Path] = {}

    def write(name: str, form: str) -> Path:
        directory = tmp_path_factory.mktemp(f"{name}-{form}")
        if form == "gguf":
            return write_gguf(directory / "tiny.gguf", references(name))
        references(name).save_pretrained(directory, max_shard_size="40KB" if form == "sharded" else "1GB")
        return directory

    def checkpoint(name: str, form: str) -> Checkpoint:
        if (name, form) not in paths:
            paths[name, form] = write(name, form)
        loader = GGUFLoader() if form == "gguf" else SafeTensorsLoader()
        return loader.open(paths[name, form])

    return checkpoint


@frozen
class ArrayWeight(Weight):
    """A tensor that lies in no file."""

    name: str
    array: Floats
    encoding: str = "F32"
    shape: tuple[int, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "shape", self.array.shape)

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        return self.array.view(np.uint8).reshape(-1, self.array.shape[-1] * 4)

    def dequantize(self, start: int = 0, stop: int | None = None) -> Floats:
        return self.array[start:stop].copy()

    def release(self) -> None:
        """Nothing is mapped."""


@pytest.fixture(scope="session")
def array_weight() -> Callable[[str, Sequence[Any]], Weight]:
    """A tensor of the given numbers."""
    return lambda name, numbers: ArrayWeight(name, np.array(numbers, np.float32))


# ----------------------------------------------------------------------------------------------------------- the steps


@define(eq=False)
class ScoredSequence:
    """A sequence all of whose rows want logits, unless `prompt_logprobs` is taken back."""

    id: int
    tokens: list[int]
    blocks: list[int]
    num_computed: int = 0
    num_cached: int = 0
    choice: int = 0
    priority: int = 0
    arrival: float = 0.0
    sampling: SamplingParams = field(factory=SamplingParams)
    banned: tuple[int, ...] = ()
    matcher: None = None
    prompt_logprobs: bool = True

    @property
    def prompt_len(self) -> int:
        return len(self.tokens)

    @property
    def max_len(self) -> int:
        return len(self.tokens)


@frozen
class FixedTables:
    """As much of a KV cache as `Backend.stage` asks for: blocks handed out once, out of order."""

    shape: CacheShape

    def table(self, seq: ScoredSequence) -> list[int]:
        return seq.blocks


class Runner:
    """Runs a model on sequences in any order of spans and keeps the logits of every position."""

    def __init__(self, model: LlamaModel, backend: Backend, block_size: int = 16, num_blocks: int = 64) -> None:
        self.model, self.backend = model, backend
        self.kv: Any = FixedTables(CacheShape(num_blocks, block_size))
        self.pages: tuple[Pages, ...] = tuple(
            backend.kv_pages(layer, num_blocks, block_size) for layer in model.kv_spec()
        )
        self.free = list(range(num_blocks))
        random.Random(5).shuffle(self.free)

    def sequence(self, tokens: Sequence[int]) -> ScoredSequence:
        needed = -(-len(tokens) // self.kv.shape.block_size)
        blocks = [self.free.pop() for _ in range(needed)]
        return ScoredSequence(len(self.free), list(tokens), blocks)

    def slabs(self, *lengths: tuple[ScoredSequence, int]) -> list[Floats]:
        """Compute the next `length` tokens of each sequence: slabs of logits for the rows that want them."""
        batch = Batch(tuple(Span(seq, seq.num_computed, length) for seq, length in lengths))
        hidden = self.backend.forward(self.model, self.backend.stage(batch, self.kv, self.pages))
        for seq, length in lengths:
            seq.num_computed += length
        return [slab.numpy() for slab in self.model.logits(hidden)]

    def step(self, *lengths: tuple[ScoredSequence, int]) -> list[Floats]:
        """Compute the next `length` tokens of each scored sequence: its logits ``[length, vocabulary]``."""
        logits = np.concatenate(self.slabs(*lengths))
        assert len(logits) == sum(length for _, length in lengths)
        return np.split(logits, np.cumsum([length for _, length in lengths])[:-1])

    def logits(self, tokens: Sequence[int], chunk: int) -> Floats:
        """A whole prompt alone, `chunk` tokens a step: logits ``[len(tokens), vocabulary]``."""
        seq = self.sequence(tokens)
        parts = []
        while seq.num_computed < len(tokens):
            parts += self.step((seq, min(chunk, len(tokens) - seq.num_computed)))
        self.free += seq.blocks
        return np.concatenate(parts)


@pytest.fixture
def runner() -> Callable[..., Runner]:
    """Load a checkpoint on the plain backend, in float32."""

    def load(checkpoint: Checkpoint, **shape: int) -> Runner:
        backend = Backend()
        return Runner(LlamaModel(checkpoint, backend), backend, **shape)

    return load


@pytest.fixture(scope="session")
def expected() -> Callable[[Any, Sequence[int]], Floats]:
    """What transformers answers: logits ``[len(tokens), vocabulary]``."""

    def logits(reference: Any, tokens: Sequence[int]) -> Floats:
        with torch.inference_mode():
            found: Floats = reference(torch.tensor([list(tokens)]), use_cache=False).logits[0].numpy()
        return found

    return logits


@pytest.fixture(scope="session")
def unpermute() -> Callable[[Floats, int], Floats]:
    """From a Llama GGUF's order of Q and K rows to that of Hugging Face."""
    return halved_pairs
