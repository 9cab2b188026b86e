"""The CUDA C++ products compiled by NVRTC for each generation of GPUs, as CuPy will on a user's machine."""

from __future__ import annotations

import pytest
from cuda.core import Program, ProgramOptions
from forge_cuda.dp4a import ROW_COUNTS, SOURCE, compile_options
from forge_cuda.formats import FORMATS
from forge_cuda.testing.compiler import Report, report

CASES = [
    pytest.param(capability, rows, marks=pytest.mark.quick if capability == 90 and rows in (1, 8) else [])
    for capability in (90, 80, 89, 100, 120)
    for rows in ROW_COUNTS
]


def compiled(capability: int, weight_format: str, rows: int) -> Report:
    """What both kernels of the source need together."""
    _, *defines = compile_options(weight_format, rows)
    macros = [tuple(define.removeprefix("-D").split("=")) for define in defines]
    options = ProgramOptions(arch=f"sm_{capability}", std="c++17", define_macro=macros)
    cubin = Program(SOURCE.read_text(encoding="utf-8"), "c++", options).compile("cubin").code
    return report("products", bytes(cubin))


@pytest.mark.parametrize(("capability", "rows"), CASES)
@pytest.mark.parametrize("weight_format", FORMATS)
def test_products_read_sixteen_bytes_and_multiply_four_numbers_at_a_time(
    weight_format: str, rows: int, capability: int
) -> None:
    found = compiled(capability, weight_format, rows)
    assert found.stack == 0, f"spills {found.stack} bytes a thread"
    assert found.registers <= 128
    assert found.count(r"LDG\.E\S*\.128") >= 3, "quants are read in small pieces"
    assert found.count(r"IDP\.4A") >= 8 * rows
