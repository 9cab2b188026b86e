"""Faults put into the machine code on purpose: each must be seen by the same cases that pass without it.

A proof that can't fail proves nothing: this is what the emulator's verdicts are worth.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from forge_cuda import CudaOptions
from forge_cuda.backend import CudaBackend, Place
from forge_cuda.testing.cases import cases
from forge_cuda.testing.draws import sampling_cases
from forge_cuda.testing.emulator import Emulate
from forge_cuda.testing.memory import RaceError

CASES = {case.name: case for case in (*cases(), *sampling_cases())}
DECODE, PROMPT = "attention bf16, spans of (1, 1, 1)", "attention bf16, spans of (90,)"
INT8, WINDOW = "attention int8, spans of (3, 40, 1)", "attention bf16, spans of (3, 40, 1), window 50"

SHARPER = 4
"""Where nothing is rounded to eight bits, errors are that much below the self-test's tolerance."""


def verdict(name: str, edit: Callable[[str], str]) -> str:
    """What the case says about code that was edited: "passed", "wrong", or the error's name."""
    changed = []

    def edited(ptx: str) -> str:
        after = edit(ptx)
        changed.append(after != ptx)
        return after

    backend = CudaBackend(Place(torch.device("cpu"), 2, Emulate(edited)), CudaOptions())
    try:
        error, tolerance = CASES[name].error(backend)
    except (MemoryError, RaceError) as seen:
        return type(seen).__name__
    finally:
        assert any(changed), "the fault was never put in"
    return "passed" if error <= tolerance / SHARPER else "wrong"


def without(pattern: str) -> Callable[[str], str]:
    """Leave out the instructions that begin so."""
    return lambda ptx: re.sub(rf"^\s*(?:@!?%p\d+ )?{pattern}[^\n]*$", "", ptx, flags=re.MULTILINE)


def instead(pattern: str, by: str, count: int = 0) -> Callable[[str], str]:
    """Put another instruction in its place; count: how many, from the first; all by default."""
    return lambda ptx: re.sub(pattern, by, ptx, count=count)


@pytest.mark.parametrize(
    "name", [DECODE, PROMPT, "product Q4_K, 20 rows", "norm", "draws of 200: top_p 0.7", "log-probabilities"]
)
def test_a_missing_barrier_is_a_race(name: str) -> None:
    assert verdict(name, without(r"bar\.sync")) == "RaceError"


@pytest.mark.parametrize("name", [DECODE, PROMPT, "product Q8_0, 20 rows", "product Q6_K, 70 rows"])
def test_a_copy_that_is_not_waited_for_is_a_race(name: str) -> None:
    assert verdict(name, without(r"cp\.async\.wait_group")) == "RaceError"


@pytest.mark.parametrize("name", [DECODE, PROMPT])
def test_waiting_for_too_few_copies_is_a_race(name: str) -> None:
    later = re.compile(r"(cp\.async\.wait_group\s+)(\d+)")
    assert verdict(name, lambda ptx: later.sub(lambda m: f"{m[1]}{int(m[2]) + 4}", ptx)) == "RaceError"


@pytest.mark.parametrize(
    ("name", "pattern", "by"),
    [
        pytest.param(DECODE, r"ex2\.approx", "lg2.approx", id="decode: another function"),
        pytest.param(DECODE, r"max\.f32", "min.f32", id="decode: the least for the largest"),
        pytest.param(DECODE, r"mma\.sync(\S+)\.bf16\.bf16", r"mma.sync\1.f16.f16", id="decode: another number format"),
        pytest.param(PROMPT, r"setp\.(ge|le|lt|gt)\.s64", r"setp.ne.s64", id="prompt: the causal mask"),
        pytest.param(PROMPT, r"shfl\.sync\.bfly(\S+)\s+(.*?), 1, 31", r"shfl.sync.bfly\1 \2, 4, 31", id="prompt: rows"),
        pytest.param(PROMPT, r"ldmatrix(\S+)\.trans", r"ldmatrix\1", id="prompt: values not transposed"),
        pytest.param(INT8, r"cvt\.rn\.f32\.s(8|16|32)", r"cvt.rn.f32.u\1", id="int8: signs"),
        pytest.param("qkv", r"sub\.f32", "add.f32", id="rotation: the sign of the sine"),
        pytest.param("qkv", r"setp\.lt\.u32", "setp.gt.u32", id="rotation: halves"),
        pytest.param("qkv, interleaved", r"sub\.f32", "add.f32", id="rotation of neighbours: the sign"),
        pytest.param("product Q4_K, 20 rows", r"bfe\.u32(.*), 4, 4;", r"bfe.u32\1, 3, 4;", id="Q4_K: high halves"),
        pytest.param("product Q6_K, 5 rows", r", -32;", r", -31;", id="Q6_K: the zero"),
        pytest.param("embedding Q5_K", r"shl\.b32(.*), 4;", r"shl.b32\1, 5;", id="Q5_K: the fifth bit"),
        pytest.param("silu", r"ex2\.approx(\S*)\s+(\S+), (\S+);", r"mov.b32 \2, \3;", id="SiLU: no exponential"),
        pytest.param("norm", r"rsqrt\.approx|sqrt\.approx|sqrt\.rn", "abs", id="norm: no root"),
        pytest.param("draws of 200: top_k 5", r"setp\.ge\.f32", "setp.lt.f32", id="draw: thresholds"),
        pytest.param("draws of 200: top_p 0.7", r"cvt\.rpi", "cvt.rmi", id="draw: how many of the equals"),
        pytest.param("draws of 5000: top_k 5", r"shfl\.sync\.up(.*), 1, 0, -1", r"shfl.sync.up\1, 2, 0, -1",
                     id="draw: ranks of equals"),
        pytest.param("draws of 200: plain", r"add(\S*)\.f64", r"sub\1.f64", id="draw: mass"),
        pytest.param("log-probabilities", r"sub\.f32", "add.f32", id="log-probabilities: the norm"),
    ],
)  # fmt: skip
def test_wrong_arithmetic_gives_wrong_results(name: str, pattern: str, by: str) -> None:
    assert verdict(name, instead(pattern, by)) != "passed"


@pytest.mark.parametrize(
    ("name", "pattern", "by"),
    [
        pytest.param(DECODE, r"ld\.global", "ld.global", id="nothing"),
    ],
)
def test_an_edit_that_changes_nothing_is_not_taken_for_a_fault(name: str, pattern: str, by: str) -> None:
    with pytest.raises(AssertionError, match="never put in"):
        verdict(name, instead(pattern, by))


@pytest.mark.parametrize("name", [WINDOW, PROMPT, "product Q4_K, 20 rows", "embedding Q4_K"])
def test_an_address_that_is_off_by_far_is_a_memory_error(name: str) -> None:
    far = re.compile(r"(ld\.global[^\[]*\[\s*%rd\d+) \+ \d+|(ld\.global[^\[]*\[\s*%rd\d+)")
    assert verdict(name, lambda ptx: far.sub(lambda m: f"{m[1] or m[2]}+1073741824", ptx)) == "MemoryError"
