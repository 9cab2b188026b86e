"""What figures were measured on, and how quiet it was there."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

SPIN = 1_000_000


def describe() -> Mapping[str, Any]:
    """What a report says of the machine. memory in bytes; load: running processes, over the last minute."""
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "usable_threads": len(usable_cpus()),
        "memory": psutil.virtual_memory().total,
        "load": psutil.getloadavg()[0],
    }


def usable_cpus() -> list[int]:
    """The numbers of the processors that this process may run on."""
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def spin_times() -> list[float]:
    """Milliseconds that a fixed loop takes on each processor: on a quiet machine always the same.

    Where a process can't be pinned, on whichever processor it is.
    """
    return [_spin() for _ in _pinned_to_each()]


def _pinned_to_each() -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in sorted(allowed):
            os.sched_setaffinity(0, {cpu})
            yield
    finally:
        os.sched_setaffinity(0, allowed)


def _spin() -> float:
    start = time.perf_counter()
    for _ in range(SPIN):
        pass
    return (time.perf_counter() - start) * 1e3


def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
