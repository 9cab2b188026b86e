"""The real SmolLM2 file, against the `gguf` package's reader; and what the loaders leave alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest

from forge.builtin.gguf import GGUFLoader


@pytest.mark.model
def test_the_real_model_reads_as_the_gguf_package_reads_it(smollm2_path: Path) -> None:
    checkpoint, reader = GGUFLoader().open(smollm2_path), gguf.GGUFReader(smollm2_path)
    found = {**checkpoint.metadata, **checkpoint.tokenizer.metadata}
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert found.keys() == fields.keys()
    for key, field in fields.items():
        value = found[key]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents(), key
    assert list(checkpoint.tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        weight = checkpoint.tensors[tensor.name]
        assert weight.shape == tuple(tensor.shape[::-1])
        assert weight.encoding == tensor.tensor_type.name
        expected = gguf.quants.dequantize(tensor.data[:4], tensor.tensor_type)
        np.testing.assert_array_equal(weight.dequantize(0, 4), expected)
    assert checkpoint.architecture == "llama"
    assert checkpoint.generation.eos_token_ids == (2,)


def test_loaders_work_without_a_tensor_library() -> None:
    code = "import sys, forge.builtin.gguf, forge.builtin.safetensors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
