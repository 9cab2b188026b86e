"""The weights of a GGUF file as SafeTensors in bfloat16, with configuration and tokenizer, for servers that want those.

    python benchmarks/safetensors_copy.py MODEL.gguf DIRECTORY

Quantised weights become the floats that they stand for, rounded to bfloat16: the same model, as near as such a server
can serve it. What reads the file is the transformers library (5.17 or later, with accelerate), for the architectures
that it knows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def copy(source: Path, target: Path) -> None:
    """Write the copy. Errors: what the library raises for a file that it can't read."""
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    template = gguf.GGUFReader(source).get_field("tokenizer.chat_template")
    if template is not None:
        tokenizer.chat_template = str(template.contents())
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def main() -> None:
    """Copy what the command line names."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    copy(Path(sys.argv[1]), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
