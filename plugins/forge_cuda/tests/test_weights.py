"""Weights on their way into planes: no bit may be lost, whatever the blocks hold; other encodings lose little."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from forge_cuda.formats import FORMATS, merge, split
from forge_cuda.testing.samples import StoredWeight
from forge_cuda.weights import upload

from forge.testing.workbench import ArrayWeight

CPU = torch.device("cpu")
CONVERTED = ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "IQ2_S", "IQ3_S", "TQ2_0"]


@pytest.mark.parametrize("encoding", FORMATS)
def test_planes_hold_exactly_what_ggufs_blocks_hold(encoding: str) -> None:
    weight = StoredWeight(encoding, 24, 768)
    planes = split(FORMATS[encoding], torch.from_numpy(np.array(weight.data)))
    np.testing.assert_array_equal(merge(FORMATS[encoding], planes).numpy(), weight.dequantize())
    assert [plane.shape[1] for plane in planes] == list(FORMATS[encoding].widths(768))


@pytest.mark.parametrize("encoding", FORMATS)
def test_planes_take_no_more_memory_than_the_file(encoding: str) -> None:
    weight = StoredWeight(encoding, 24, 768)
    handle = upload([weight], CPU, torch.bfloat16)
    assert handle.nbytes <= 1.03 * weight.nbytes
    assert weight.released


@pytest.mark.parametrize("encoding", CONVERTED)
def test_other_encodings_lose_no_more_than_eight_bits_do(encoding: str) -> None:
    weight = StoredWeight(encoding, 48, 512)
    handle = upload([weight], CPU, torch.bfloat16)
    wanted = weight.dequantize().reshape(48, -1, 32)
    error = np.abs(handle.rows(0, 48).numpy().reshape(48, -1, 32) - wanted)
    # Half a step of 1/127 of the block's largest, and the scale's own rounding to 16 bits, subnormal ones included.
    assert (error <= np.abs(wanted).max(-1, keepdims=True) * (0.5 / 127 + 2**-10) + 127 * 2**-25).all()
    assert handle.nbytes == 48 * 512 * 34 // 32


def test_parts_of_the_same_encoding_share_a_segment_and_keep_their_order() -> None:
    parts = [StoredWeight(e, rows, 256, seed=rows) for e, rows in [("Q4_K", 8), ("Q4_K", 3), ("Q6_K", 5), ("F16", 2)]]
    handle = upload(parts, CPU, torch.bfloat16)
    assert [(segment.row, segment.rows) for segment in handle.segments] == [(0, 11), (11, 5), (16, 2)]
    wanted = np.concatenate([part.dequantize() for part in parts])
    np.testing.assert_array_equal(handle.rows(0, 18).numpy(), wanted)
    for start, stop in [(0, 1), (7, 9), (10, 17), (15, 16), (17, 18)]:
        np.testing.assert_array_equal(handle.rows(start, stop).numpy(), wanted[start:stop])


@pytest.mark.parametrize(
    ("encoding", "dtype", "held"),
    [
        ("BF16", "float16", "bfloat16"),
        ("F16", "bfloat16", "float16"),
        ("F32", "bfloat16", "bfloat16"),
        ("F32", "float16", "float16"),
        ("F16", "float32", "float32"),
    ],
)
def test_dense_weights_are_held_as_stored_unless_they_are_float32(encoding: str, dtype: str, held: str) -> None:
    values = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32)
    weight = ArrayWeight("w", values, encoding)
    handle = upload([weight], CPU, getattr(torch, dtype))
    assert handle.segments[0].dense is not None
    assert handle.segments[0].dense.dtype == getattr(torch, held)
    wanted = torch.from_numpy(weight.dequantize()).to(getattr(torch, held)).float()
    assert torch.equal(handle.rows(0, 5), wanted)


def test_rows_without_whole_blocks_become_float16() -> None:
    class Odd(ArrayWeight):
        def __init__(self) -> None:
            super().__init__("w", np.ones((4, 40), np.float32))
            self.encoding = "F64"

    handle = upload([Odd()], CPU, torch.bfloat16)
    assert handle.segments[0].dense is not None
    assert handle.segments[0].dense.dtype == torch.float16


def test_large_tensors_arrive_whole_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forge_cuda.weights.PIECE_BYTES", 1000)
    weight = StoredWeight("Q6_K", 37, 256)
    handle = upload([weight], CPU, torch.bfloat16)
    np.testing.assert_array_equal(handle.rows(0, 37).numpy(), weight.dequantize())
    assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q6_K] == (256, FORMATS["Q6_K"].nbytes)
