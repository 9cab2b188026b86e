"""Every kernel as it would be compiled for each generation of GPUs, on the shapes of an 8-billion Llama.

Budgets: no spills; registers and shared memory that let a multiprocessor hold what it needs to hide latency.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attrs import evolve
from forge_cuda.formats import FORMATS
from forge_cuda.kernels.attention import attend
from forge_cuda.kernels.embedding import embed
from forge_cuda.kernels.gemm import multiply
from forge_cuda.kernels.norm import rms_norm
from forge_cuda.kernels.qkv import split_rotate_write
from forge_cuda.kernels.silu import silu_mul
from forge_cuda.pages import CudaPages
from forge_cuda.sampling import sample
from forge_cuda.spans import make_lists
from forge_cuda.testing.compiler import Compile, Report
from forge_cuda.transfer import Courier
from forge_cuda.weights import Segment

from forge.interfaces.layers import AttentionSpec, LayerSpec, RopeSpec
from forge.interfaces.model import LayerKV
from forge.testing.sampling import rows as sampling_rows

CPU = torch.device("cpu")
ATTENTION = AttentionSpec(heads=32, kv_heads=8, k_dim=128, v_dim=128, scale=128**-0.5)
SPEC = LayerSpec(ATTENTION, RopeSpec(tuple(500000.0 ** (-i / 64) for i in range(64))), norm_eps=1e-5)
SHARED_MEMORY = {80: 163, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB that a block may have, by compute capability (CUDA programming guide, technical specifications)."""


@pytest.fixture(
    params=[pytest.param(90, marks=pytest.mark.quick), 80, 89, 100, 120], ids=lambda capability: f"sm_{capability}"
)
def compiler(request: pytest.FixtureRequest) -> Compile:
    return Compile(request.param)


@pytest.fixture(params=SHARED_MEMORY, ids=lambda capability: f"sm_{capability}")
def every(request: pytest.FixtureRequest) -> Compile:
    """As `compiler`, for what takes too long to be in every test run."""
    return Compile(request.param)


def check(compiler: Compile, registers: int = 255) -> list[Report]:
    """Assert that everything compiled is within budget."""
    assert compiler.reports
    for report in compiler.reports:
        assert report.stack == 0, f"{report.name} spills {report.stack} bytes a thread"
        assert report.count("LDL|STL") == 0, f"{report.name} uses local memory"
        assert report.registers <= registers, f"{report.name} needs {report.registers} registers"
        assert report.shared <= SHARED_MEMORY[compiler.capability] << 10
    return compiler.reports


def tensor_core_products(report: Report) -> int:
    """Instructions of Ampere, Hopper and Blackwell that multiply matrices."""
    return report.count("HMMA|HGMMA|UTCHMMA|UTCQMMA")


def test_norms_read_and_write_whole_words(compiler: Compile) -> None:
    x, delta = torch.empty(4, 4096), torch.empty(4, 4096, dtype=torch.bfloat16)
    rms_norm(compiler, x, torch.empty(4096), 1e-5, torch.bfloat16)
    rms_norm(compiler, x, torch.empty(4096), 1e-5, torch.bfloat16, delta)
    rms_norm(compiler, x, torch.empty(4096), 1e-5, torch.float32, delta, torch.zeros(2, dtype=torch.int64))
    assert all(report.count(r"LDG\.E\S*\.128") for report in check(compiler, registers=64))


def test_silu_reads_and_writes_whole_words(compiler: Compile) -> None:
    silu_mul(compiler, torch.empty(4, 28672, dtype=torch.bfloat16), torch.bfloat16)
    (report,) = check(compiler, registers=64)
    assert report.count(r"LDG\.E\S*\.128")


@pytest.mark.parametrize("kind", ["dense", *FORMATS])
def test_embeddings(every: Compile, kind: str) -> None:
    table = Segment(0, 512, 4096, FORMATS.get(kind, torch.bfloat16), CPU)
    embed(every, torch.zeros(3, dtype=torch.int64), table)
    check(every, registers=128)


@pytest.mark.parametrize("kv_format", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("qk_norm", [False, True])
def test_qkv(compiler: Compile, kv_format: torch.dtype, qk_norm: bool) -> None:
    pages = CudaPages(LayerKV(8, 128, 128), 4, 16, kv_format, CPU)
    norms = (torch.empty(128), torch.empty(128)) if qk_norm else None
    angles = (torch.empty(4, 64), torch.empty(4, 64))
    slots, bias = torch.zeros(4, dtype=torch.int64), torch.empty(6144) if qk_norm else None
    product = torch.empty(4, 6144, dtype=torch.bfloat16)
    for interleaved in (False, True):
        spec = evolve(SPEC, rope=evolve(SPEC.rope, interleaved=interleaved))
        split_rotate_write(compiler, product, bias, norms, angles, slots, pages, spec, torch.bfloat16)
    check(compiler, registers=64)


def attention(compiler: Compile, heads: tuple[int, int], dim: int, lengths: tuple[int, ...], kv_format: torch.dtype,
              window: int | None = None) -> list[Report]:  # fmt: skip
    """Reports of the kernels for spans that end sequences of 300 positions."""
    spec = AttentionSpec(*heads, k_dim=dim, v_dim=dim, scale=dim**-0.5, window=window)
    pages = CudaPages(LayerKV(spec.kv_heads, dim, dim), 40, 16, kv_format, CPU)
    starts = torch.from_numpy(np.cumsum((0, *lengths)))
    spans = make_lists(starts, torch.tensor([300] * len(lengths)), CPU)
    q = torch.empty(sum(lengths), spec.heads, dim, dtype=torch.bfloat16)
    attend(compiler, q, pages, torch.zeros(len(lengths), 20, dtype=torch.int64), spans, spec, multiprocessors=132)
    return check(compiler)


def attention_of_llama(compiler: Compile, lengths: tuple[int, ...], kv_format: torch.dtype, window: int | None) -> None:
    """Compile attention with an 8-billion Llama's heads and check what it uses."""
    decodes = len(lengths) > 1
    first, *merge = attention(compiler, (32, 8), 128, lengths, kv_format, window)
    # One of Hopper's or Blackwell's instructions does the work of several of Ampere's.
    assert first.count("HMMA") >= 16 or tensor_core_products(first) >= 8
    # Queries are read in two such loads; keys and values are what remains.
    assert first.count(r"LDG\.E\S*\.128|LDGSTS\.E\S*\.128") > 2, "keys and values are read in small pieces"
    assert not first.count(r"LDG\.E\S*\.[US](8|16)|LDG\.E ")
    # Three blocks of four warps on a multiprocessor hide the latency of decodes; a prompt's tiles need the registers.
    assert first.registers <= (168 if decodes else 255)
    assert len(merge) == decodes
    assert all(report.registers <= 128 for report in merge)


@pytest.mark.parametrize(
    ("lengths", "kv_format", "window"),
    [((1, 1), torch.int8, 4096), ((300,), torch.bfloat16, None)],
    ids=["decodes", "prompt"],
)
def test_attention_runs_on_tensor_cores(
    compiler: Compile, lengths: tuple[int, ...], kv_format: torch.dtype, window: int | None
) -> None:
    attention_of_llama(compiler, lengths, kv_format, window)


@pytest.mark.parametrize("window", [None, 4096])
@pytest.mark.parametrize("kv_format", [torch.bfloat16, torch.int8])
@pytest.mark.parametrize("lengths", [(1, 1), (300,)], ids=["decodes", "prompt"])
def test_attention_of_every_kind(
    every: Compile, lengths: tuple[int, ...], kv_format: torch.dtype, window: int | None
) -> None:
    attention_of_llama(every, lengths, kv_format, window)


@pytest.mark.parametrize(("heads", "dim"), [((32, 4), 64), ((32, 32), 80), ((40, 8), 128), ((16, 8), 256)], ids=str)
@pytest.mark.parametrize("kv_format", [torch.bfloat16, torch.int8])
def test_attention_of_other_shapes_is_within_budget(
    every: Compile, heads: tuple[int, int], dim: int, kv_format: torch.dtype
) -> None:
    for lengths in ((1, 1), (300,)):
        first, *_ = attention(every, heads, dim, lengths, kv_format)
        assert tensor_core_products(first) >= 4


def product(compiler: Compile, name: str, rows: int) -> None:
    """Compile a product and check what it uses."""
    weights = Segment(0, 256, 4096, FORMATS[name], CPU)
    x, out = torch.empty(rows, 4096, dtype=torch.bfloat16), torch.empty(rows, 256, dtype=torch.bfloat16)
    multiply(compiler, x, weights, torch.empty(256), out)
    (report,) = check(compiler)
    assert tensor_core_products(report) >= 2
    assert report.count(r"LDG\.E\S*\.128|LDGSTS\.E\S*\.128") >= 6, "quants and activations are read in small pieces"
    assert report.registers <= (128 if rows <= 20 else 168 if rows <= 60 else 255)


@pytest.mark.parametrize(("name", "rows"), [("Q4_K", 4), ("Q8_0", 60), ("Q6_K", 512)])
def test_quantised_products_run_on_tensor_cores(compiler: Compile, name: str, rows: int) -> None:
    product(compiler, name, rows)


@pytest.mark.parametrize("rows", [4, 20, 60, 512], ids=lambda rows: f"{rows} rows")
@pytest.mark.parametrize("name", FORMATS)
def test_quantised_products_of_every_format_and_size(every: Compile, name: str, rows: int) -> None:
    product(every, name, rows)


def test_quantised_products_with_an_odd_number_of_groups(every: Compile) -> None:
    for rows in (4, 512):
        weights = Segment(0, 256, 480, FORMATS["Q8_0"], CPU)
        x, out = torch.empty(rows, 480, dtype=torch.float16), torch.empty(rows, 256, dtype=torch.float16)
        multiply(every, x, weights, None, out)
    assert all(report.count(r"LDG\.E\S*\.128|LDGSTS\.E\S*\.128") for report in check(every))


def test_sampling(compiler: Compile) -> None:
    r = sampling_rows(
        2,
        repetition_penalty=np.ones(2, np.float32),
        presence_penalty=np.ones(2, np.float32),
        frequency_penalty=np.ones(2, np.float32),
        history_starts=np.array([0, 1, 2]),
        history_ids=np.array([5, 6]),
        history_counts=np.array([1, 2]),
        bias_starts=np.array([0, 1, 1]),
        bias_ids=np.array([7]),
        bias_values=np.ones(1, np.float32),
        banned_starts=np.array([0, 1, 1]),
        banned_ids=np.array([8]),
        masks=np.full((2, 4008), -1, np.int32),
        logprobs=5,
    )

    class Nothing(Compile):
        def __call__(self, kernel: object, grid: tuple[int, ...], *args: object, **meta: object) -> None:
            super().__call__(kernel, grid, *args, **meta)
            if kernel.__name__ == "pick_kernel":  # type: ignore[attr-defined]
                results = args[7]
                assert isinstance(results, torch.Tensor)
                results.fill_(1)  # what an unlaunched kernel leaves would be refused

    only = Nothing(compiler.capability)
    sample(only, Courier(CPU), torch.zeros(2, 128256), r)
    names = [report.name for report in check(only)]
    assert names == ["bias_kernel", "penalty_kernel", "mask_kernel", "ban_kernel", "pick_kernel", "logprob_kernel"]
