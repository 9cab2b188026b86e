"""How kernels are started: one function that the host code is given, so that tests can compile or emulate instead."""

from __future__ import annotations

from typing import Any, Protocol


class Launch(Protocol):
    """Runs `kernel` on a grid of up to three dimensions; `meta` holds its constexprs and the compiler's options."""

    def __call__(self, kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None: ...


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """Run it with Triton, on the current device and stream."""
    if all(grid):
        kernel[grid](*args, **meta)


def power_of_two(number: int, least: int = 1) -> int:
    """The smallest power of two that is neither below `number` nor below `least`."""
    return max(least, 1 << max(0, number - 1).bit_length())
