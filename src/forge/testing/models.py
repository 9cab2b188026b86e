"""A tiny model with random weights, as a GGUF file, for tests that need the whole way from a file to an answer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = ("t h", "th e", "i n", "Ġ the", "a n")


def write_tiny_llama(path: Path, *, seed: int = 0, context_length: int = 512, layers: int = 2) -> Path:
    """Write a Llama of some 100,000 random weights with a byte-level tokenizer and a ChatML template; returns `path`.

    Its answers are noise, but the same noise every time: nothing ends them early but the end-of-sequence id 2, which is
    as likely as any other.
    """
    hidden, ffn, heads, kv_heads = 64, 128, 4, 2
    head = hidden // heads
    tokens = [*SPECIAL, *_byte_alphabet(), *(merge.replace(" ", "") for merge in MERGES)]
    rng = np.random.default_rng(seed)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(context_length)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(ffn)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(head)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)

    def matrix(name: str, rows: int, columns: int, scale: float = 1.0) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * np.float32(scale * columns**-0.5)
        writer.add_tensor(name, values)

    def norm(name: str) -> None:
        ones: npt.NDArray[np.float32] = np.ones(hidden, np.float32)
        writer.add_tensor(name, ones)

    matrix("token_embd.weight", len(tokens), hidden, scale=8.0)
    matrix("output.weight", len(tokens), hidden, scale=3.0)
    norm("output_norm.weight")
    for i in range(layers):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        matrix(f"blk.{i}.attn_q.weight", hidden, hidden)
        matrix(f"blk.{i}.attn_k.weight", kv_heads * head, hidden)
        matrix(f"blk.{i}.attn_v.weight", kv_heads * head, hidden)
        matrix(f"blk.{i}.attn_output.weight", hidden, hidden)
        matrix(f"blk.{i}.ffn_gate.weight", ffn, hidden)
        matrix(f"blk.{i}.ffn_up.weight", ffn, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, ffn)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _byte_alphabet() -> list[str]:
    """The characters by which byte-level BPE writes the bytes 0 to 255, in the order of the bytes.

    Printable bytes of Latin-1 stand for themselves, the others for the code points from 256 on (GPT-2's encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
