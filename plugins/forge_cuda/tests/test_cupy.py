"""How the products are launched through CuPy: on a stand-in for it that runs the very kernels on the CPU."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from forge_cuda.dp4a import SOURCE, CupyProducts
from forge_cuda.formats import FORMATS
from forge_cuda.testing.samples import StoredWeight
from forge_cuda.testing.shim import ShimProducts
from forge_cuda.weights import upload

STREAM = 0x5EED


class FakeCupy(ModuleType):
    """What `CupyProducts` uses of CuPy. Arguments have to be what CuPy hands to a kernel as they are."""

    def __init__(self, shim: ShimProducts) -> None:
        super().__init__("cupy")
        self.shim, self.current, self.compiled = shim, [], []
        self.cuda = SimpleNamespace(Device=self.entered("device"), ExternalStream=self.entered("stream"))

    def entered(self, kind: str) -> Callable[..., Any]:
        @contextmanager
        def enter(*arguments: int) -> Iterator[None]:
            self.current.append((kind, *arguments))
            yield
            self.current.pop()

        return enter

    def RawModule(self, code: str, options: tuple[str, ...]) -> Any:  # noqa: N802
        assert code == SOURCE.read_text(encoding="utf-8")
        defines = dict(re.fullmatch(r"-D(\w+)=(\d+)", option).groups() for option in options[1:])  # type: ignore[union-attr]
        rows = int(defines.pop("ROWS"))
        (weight_format,) = (name.removeprefix("FORMAT_") for name in defines)
        self.compiled.append((weight_format, rows))
        library = self.shim._library(weight_format, rows)
        return SimpleNamespace(get_function=lambda name: self.kernel(library, name))

    def kernel(self, library: ctypes.CDLL, name: str) -> Any:
        def run(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            assert self.current == [("device", 1), ("stream", STREAM, 1)], "a kernel on the wrong stream"
            passed = [
                ctypes.c_int(int(x)) if isinstance(x, np.int32) else ctypes.c_void_p(x) for x in arguments
            ]  # CuPy passes a Python int in 64 bits
            function = {"multiply": library.run_multiply, "round_activations": library.run_round}[name]
            function(*grid, *block, *passed)

        return run


@pytest.fixture
def cupy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCupy:
    fake = FakeCupy(ShimProducts(tmp_path))
    monkeypatch.setitem(sys.modules, "cupy", fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=STREAM))
    return fake


@pytest.mark.parametrize(("encoding", "rows"), [("Q4_K", 1), ("Q6_K", 3), ("Q8_0", 8)])
def test_kernels_get_their_arguments_in_order_on_torchs_stream(cupy: FakeCupy, encoding: str, rows: int) -> None:
    products = CupyProducts(torch.device("cuda", 1))
    handle = upload([StoredWeight(encoding, 13, 512)], torch.device("cpu"), torch.bfloat16)
    x = torch.randn(rows, 512, generator=torch.Generator().manual_seed(rows)).bfloat16()
    wanted = x.double() @ handle.rows(0, 13).double().T
    bias = torch.linspace(-1, 1, 13)
    for added in (None, bias):
        out = torch.full((rows, 20), torch.nan, dtype=torch.bfloat16)
        rounded = products.round(x)
        products.multiply(rounded, handle.segments[0], added, out[:, 2:15])
        expected = wanted if added is None else wanted + added
        assert (out[:, 2:15] - expected).abs().max() <= 2e-2 * wanted.abs().max()
        assert out[:, :2].isnan().all()
        assert out[:, 15:].isnan().all()
    # Each kernel is compiled once; rounding is the same for all formats.
    assert cupy.compiled == [("Q8_0", 1), (encoding, {1: 1, 3: 4, 8: 8}[rows])]
    assert encoding in FORMATS
