"""What every kernel must compute, as cases with references in float64: for the self-test on a GPU, and for the tests,
which run the same cases in Triton's interpreter and in the emulator of machine instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from attrs import evolve, frozen

from forge.interfaces.layers import AttentionSpec, LayerSpec, RopeSpec
from forge.interfaces.model import LayerKV
from forge_cuda.backend import CudaBackend
from forge_cuda.formats import FORMATS
from forge_cuda.pages import FORMATS as KV_FORMATS
from forge_cuda.pages import CudaPages
from forge_cuda.spans import make_lists
from forge_cuda.testing.samples import StoredWeight

ATTENTION = AttentionSpec(heads=8, kv_heads=2, k_dim=64, v_dim=64, scale=0.125)
ROPE = RopeSpec(tuple(10000.0 ** (-i / 24) for i in range(24)))

TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest error relative to the largest value, by the dtype that is computed in."""


@frozen
class Case:
    """One check. run: on a backend, gives (found, wanted)."""

    name: str
    run: Callable[[CudaBackend], tuple[torch.Tensor, torch.Tensor]]
    factor: float = 1.0

    def error(self, backend: CudaBackend) -> tuple[float, float]:
        """(error, tolerance), the error relative to the largest value; infinite where the result isn't finite."""
        found, wanted = (x.detach().cpu().double() for x in self.run(backend))
        assert found.shape == wanted.shape
        if not torch.isfinite(found).all():
            return float("inf"), TOLERANCES[backend.dtype]
        error = (found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)
        return float(error), self.factor * TOLERANCES[backend.dtype]


def cases() -> Iterator[Case]:
    """All of them."""
    for encoding in ("F32", "F16", "BF16", *FORMATS):
        yield Case(f"embedding {encoding}", lambda b, e=encoding: _embedding(b, e))  # type: ignore[misc]
        for rows in (1, 5, 20, 70):
            # Activations of few rows may be rounded to eight bits.
            yield Case(f"product {encoding}, {rows} rows", lambda b, e=encoding, r=rows: _product(b, e, r), 2)  # type: ignore[misc]
    for encoding in ("Q8_0", "Q4_0", "Q4_1"):  # 15 groups, which no number of groups at a time divides
        yield Case(f"product {encoding}, 20 rows of 480", lambda b, e=encoding: _product(b, e, 20, 480))  # type: ignore[misc]
    yield Case("norm", _norm)
    yield Case("norm after a sum, of some rows", _summed_norm)
    yield Case("silu", _silu)
    for interleaved in (False, True):
        for qk_norm in (False, True):
            spec = LayerSpec(ATTENTION, evolve(ROPE, interleaved=interleaved), 1e-5, qk_norm=qk_norm)
            name = f"qkv{', interleaved' * interleaved}{', QK norm' * qk_norm}"
            yield Case(name, lambda b, s=spec: _qkv(b, s), 2)  # type: ignore[misc]
    for kv_format in ("bf16", "f16", "f32", "int8"):
        for window in (None, 50):
            for counts in ((1, 1, 1), (3, 40, 1), (90,)):
                name = f"attention {kv_format}, spans of {counts}{f', window {window}' if window else ''}"
                yield Case(name, lambda b, k=kv_format, w=window, c=counts: _attention(b, k, w, c), 2)  # type: ignore[misc]


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _embedding(backend: CudaBackend, encoding: str) -> tuple[torch.Tensor, torch.Tensor]:
    weight = StoredWeight(encoding, 50, 768)
    ids = torch.tensor([49, 0, 7, 7])
    handle = backend.prepare([weight], {"embedding"})
    return backend.embedding(handle, ids.to(backend.device)), torch.from_numpy(weight.dequantize())[ids]


def _product(backend: CudaBackend, encoding: str, rows: int, columns: int = 512) -> tuple[torch.Tensor, torch.Tensor]:
    weight, other = StoredWeight(encoding, 80, columns), StoredWeight("F16", 3, columns)
    handle = backend.prepare([weight, other], {"linear"})
    x, bias = _random(rows, columns), _random(83, seed=1)
    values = np.concatenate((weight.dequantize(), other.dequantize()))
    wanted = x.double() @ torch.from_numpy(values).double().T + bias
    return backend.linear(x.to(backend.device), handle, bias.to(backend.device)), wanted


def _norm(backend: CudaBackend) -> tuple[torch.Tensor, torch.Tensor]:
    x, weight = _random(5, 4096) * 30, _random(4096, seed=1)
    wanted = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    return backend.rms_norm(x.to(backend.device), weight.to(backend.device), 1e-5), wanted


def _summed_norm(backend: CudaBackend) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of all rows, and the norms of two of them."""
    x, delta, weight = _random(5, 3000) * 30, _random(5, 3000, seed=2).to(backend.dtype), _random(3000, seed=1)
    device, rows = backend.device, torch.tensor([4, 2])
    arguments = x.to(device), weight.to(device), 1e-5
    total, normed = backend.operations.rms_norm(*arguments, backend.dtype, delta.to(device))
    _, chosen = backend.operations.rms_norm(*arguments, torch.float32, delta.to(device), rows.to(device))
    summed = x.double() + delta.double()
    wanted = summed / (summed.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    # The sum is some hundred times as large as the norms: each in units of its largest.
    found = [total.double() / summed.abs().max(), normed.double(), chosen.double()]
    expected = [summed / summed.abs().max(), wanted, wanted[rows]]
    return torch.cat([y.cpu().flatten() for y in found]), torch.cat([y.flatten() for y in expected])


def _silu(backend: CudaBackend) -> tuple[torch.Tensor, torch.Tensor]:
    gate_up = _random(5, 3000) * 4
    gate, up = gate_up.double().chunk(2, dim=-1)
    return backend.silu_mul(gate_up.to(backend.device)), gate / (1 + (-gate).exp()) * up


def _qkv(backend: CudaBackend, spec: LayerSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries, and keys and values as the pages give them back."""
    a, rows = spec.attention, 6
    operations, device = backend.operations, backend.device
    pages = CudaPages(LayerKV(a.kv_heads, a.k_dim, a.v_dim), 3, 4, backend.dtype, device)
    product, bias = _random(rows, (a.heads + 2 * a.kv_heads) * a.k_dim).to(backend.dtype), _random(768, seed=1)
    norms = (_random(a.k_dim, seed=2), _random(a.k_dim, seed=3)) if spec.qk_norm else None
    positions, slots = torch.tensor([0, 1, 5, 900, 2, 3]), torch.tensor([4, 5, -1, 0, 11, 2])
    q = operations.split_rotate_write(
        product.to(device), bias.to(device), None if norms is None else (norms[0].to(device), norms[1].to(device)),
        operations.angles(positions.to(device), spec.rope), slots.to(device), pages, spec,
    )  # fmt: skip
    heads = (product.double() + bias).unflatten(-1, (-1, a.k_dim))
    wanted_q, k, v = heads.split((a.heads, a.kv_heads, a.kv_heads), dim=1)
    if norms is not None:
        wanted_q, k = (
            x / (x.square().mean(-1, keepdim=True) + spec.norm_eps).sqrt() * weight
            for x, weight in zip((wanted_q, k), norms)
        )
    wanted_q, k = (_rotated(x, positions, spec.rope) for x in (wanted_q, k))
    stored = [x.cpu() for x in pages.read(torch.arange(3, device=device))]
    kept = slots[slots >= 0]
    found = [q.cpu().double().flatten(1), *(x.double()[kept].flatten(1) for x in stored)]
    wanted = [wanted_q.flatten(1), *(x[slots >= 0].flatten(1) for x in (k, v))]
    return torch.cat([x.flatten() for x in found]), torch.cat([x.flatten() for x in wanted])


def _rotated(x: torch.Tensor, positions: torch.Tensor, spec: RopeSpec) -> torch.Tensor:
    """Rotation as multiplication of complex numbers."""
    turned, rest = x[..., : spec.dim], x[..., spec.dim :]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if spec.interleaved else turned.chunk(2, dim=-1)
    angle = positions.double()[:, None, None] * torch.tensor(spec.inverse_frequencies, dtype=torch.float64)
    pair = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    joined = (
        torch.stack((pair.real, pair.imag), dim=-1).flatten(-2)
        if spec.interleaved
        else torch.cat((pair.real, pair.imag), dim=-1)
    )
    return torch.cat((joined, rest), dim=-1)


def _attention(
    backend: CudaBackend, kv_format: str, window: int | None, counts: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Spans at the end of sequences of 130, 77, … positions, whose blocks are shuffled."""
    a, block = evolve(ATTENTION, window=window), 16
    lengths = [130, 77, 9][: len(counts)]
    device = backend.device
    pages = CudaPages(LayerKV(a.kv_heads, a.k_dim, a.v_dim), 20, block, KV_FORMATS[kv_format], device)
    slots = torch.arange(20 * block, device=device)
    k, v = (_random(len(slots), a.kv_heads, a.k_dim, seed=seed).to(device) for seed in (1, 2))
    pages.write(slots, k, v)
    table = torch.zeros(len(counts), 9, dtype=torch.int64)
    free = torch.randperm(20, generator=torch.Generator().manual_seed(3)).tolist()
    for row, length in zip(table, lengths):
        for i in range(-(-length // block)):
            row[i] = free.pop()
    q = _random(sum(counts), a.heads, a.k_dim, seed=4).to(backend.dtype)
    starts = torch.tensor([0, *np.cumsum(counts).tolist()])
    spans = make_lists(starts, torch.tensor(lengths), device)
    found = backend.operations.attend(q.to(device), pages, table.to(device), spans, a)
    wanted = torch.empty(sum(counts), a.heads, a.v_dim, dtype=torch.float64)
    for span, (start, stop) in enumerate(pairwise(starts.tolist())):
        keys, values = (x.cpu().double()[: lengths[span]] for x in pages.read(table[span].to(device)))
        for row in range(start, stop):
            last = lengths[span] - (stop - row)
            first = 0 if window is None else max(0, last + 1 - window)
            for head in range(a.heads):
                shared = head // (a.heads // a.kv_heads)
                scores = keys[first : last + 1, shared] @ q[row, head].double() * a.scale
                wanted[row, head] = scores.softmax(0) @ values[first : last + 1, shared]
    return found, wanted
