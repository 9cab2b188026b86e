"""What this machine's processor can do and how much of it is ours; no torch."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores() -> int:
    """Cores that this process may use: its affinity mask, cut by the cgroup's CPU quota. At least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:  # https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup, or "max": no quota
    return max(1, cores)


def cpu_flags() -> frozenset[str]:
    """Instruction set extensions as Linux names them; empty where that can't be read."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def has_native_bf16() -> bool:
    """Whether bfloat16 products run in hardware; emulated, they're slower than float32."""
    return bool(cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
