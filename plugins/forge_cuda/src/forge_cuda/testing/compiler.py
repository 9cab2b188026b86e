"""Compiles kernels for any GPU without one: a driver that only says which, and what the machine code looks like.

The kernels come out as the product's own host code would have them: same specialisation, block sizes and warps.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton
from attrs import frozen
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class TargetOnly(DriverBase):  # type: ignore[misc]
    """A driver of a GPU that isn't there; capability as in 90 for 9.0."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    @classmethod
    def is_active(cls) -> bool:
        return True

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton caches kernels by device: one for each target

    def get_current_stream(self, device: int = 0) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(self.capability, 10)

    def set_current_device(self, device: int) -> None: ...

    def get_active_torch_device(self) -> Any:
        import torch

        return torch.device("cpu")

    def map_python_to_cpp_type(self, ty: str) -> str:
        from triton.backends.nvidia.driver import ty_to_cpp

        return str(ty_to_cpp(ty))

    def get_benchmarker(self) -> Callable[..., Any]:
        raise RuntimeError("there is no GPU to measure on")


@frozen
class Report:
    """What a kernel's machine code uses. registers: a thread; stack: bytes a thread, where spills go; shared: bytes.

    sass: the disassembly.
    """

    name: str
    registers: int
    stack: int
    shared: int
    sass: str

    def count(self, pattern: str) -> int:
        """How many instructions match, by their mnemonic."""
        return len(re.findall(rf"^\s*/\*[0-9a-f]{{4,}}\*/\s+(?:@!?U?P\w+ )?(?:{pattern})", self.sass, re.MULTILINE))


class Compile:
    """A launcher that compiles instead, and keeps each kernel with its report."""

    def __init__(self, capability: int) -> None:
        self.capability = capability
        self.kernels: list[Any] = []
        self.reports: list[Report] = []

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
        driver.set_active(TargetOnly(self.capability))
        compiled = kernel.warmup(*args, grid=grid, **meta)
        self.kernels.append(compiled)
        self.reports.append(report(kernel.__name__, compiled.asm["cubin"], compiled.metadata.shared))


def report(name: str, cubin: bytes, shared: int = 0) -> Report:
    """Take a cubin apart with the tools in Triton's wheel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "--dump-resource-usage", file.name)
        sass = _tool("nvdisasm", "-c", file.name)
    values = dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", usage))
    return Report(
        name, int(values["REG"]), int(values["STACK"]) + int(values["LOCAL"]), max(shared, int(values["SHARED"])), sass
    )


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout
