"""What the native kernels reach, beside what this machine can do at most: `python benchmarks/kernels.py [PART...]`.

Parts: linear layers, attention, the operations on rows between them, sampling, whole steps; all unless some are named.
For each kernel its time, GB/s of what it has to read and write, and Gop/s, a multiplication and an addition counted as
two, with their shares of the ceilings that simple loops reach in the same rounds: reading as many bytes over and over,
so that small data comes from a cache in both; products of the integer units (linear layers, steps) or of the float
units (the rest; where attention multiplies pairs of bfloat16 it can pass 100%). The best of several rounds, which visit
all cases of a group in turn, so that a disturbance harms all alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from forge_cpu.backend import LOUD
from forge_cpu.machine import usable_cores
from forge_cpu.native import extension
from kernel_cases import COLD, Case, Group, attention, linear, row_operations, sampling
from kernel_steps import steps

LEAST = 1 << 20
"""Bytes of the reading loop's buffer at least: less is hardly shared among the threads."""

PARTS = ("linear", "attention", "rows", "sampling", "steps")


def measure(native: Any, pool: Any, group: Group, rounds: int) -> None:
    """Time all cases of a group and print them."""
    cases = group.make()
    best, bandwidth = [float("inf")] * len(cases), [0.0] * len(cases)
    peak = 0.0
    for _ in range(rounds):
        peak = max(peak, native.measure_dot(pool) if group.units == "int8" else native.measure_fma(pool))
        read = {nbytes: native.measure_bandwidth(pool, nbytes) for nbytes in {_working_set(c) for c in cases}}
        for i, case in enumerate(cases):
            bandwidth[i] = max(bandwidth[i], read[_working_set(case)])
            case.before()
            start = time.perf_counter()
            case.run()
            best[i] = min(best[i], (time.perf_counter() - start) / case.copies)
    print(f"\n{group.title}; {peak:.0f} {group.units} Gop/s at most")
    print(f"{'':>10} {'µs':>10} {'GB/s':>8} {'of':>6} {'':>5} {'Gop/s':>8}")
    for case, seconds, limit in zip(cases, best, bandwidth, strict=True):
        print(_line(case, seconds, limit, peak), flush=True)


def _working_set(case: Case) -> int:
    return max(LEAST, min(COLD, case.nbytes * case.copies))


def _line(case: Case, seconds: float, bandwidth: float, peak: float) -> str:
    moved, done = case.nbytes / seconds * 1e-9, case.operations / seconds * 1e-9
    line = f"{case.name:>10} {seconds * 1e6:>10.1f} {moved:>8.1f} {bandwidth:>6.1f} {100 * moved / bandwidth:>4.0f}%"
    return line + (f" {done:>8.1f} {100 * done / peak:>4.0f}%" if done else "")


def groups(native: Any, pool: Any, options: argparse.Namespace) -> Iterator[Group]:
    """Those that the command line asks for."""
    made = {
        "linear": lambda: linear(native, pool, options.rows, options.encodings),
        "attention": lambda: attention(native, pool, options.kv),
        "rows": lambda: row_operations(native, pool),
        "sampling": lambda: sampling(native, pool),
        "steps": lambda: steps(native, pool, options.kv),
    }
    return chain.from_iterable(made[part]() for part in options.parts or PARTS)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", help="instruction set; the best that runs here unless given")
    parser.add_argument("--encodings", nargs="*", help="of linear layers, instead of those that the models use")
    parser.add_argument("--bits", choices=["auto", "8", "16"], default="auto", help="of activations")
    parser.add_argument("--kv", choices=["f32", "f16", "bf16", "int8"], default="f16", help="format of the KV cache")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 16, 64, 256], help="of linear layers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    options = parser.parse_args()
    for part in options.parts:
        if part not in PARTS:
            parser.error(f"{part!r} is none of {', '.join(PARTS)}")
    return options


def main() -> None:
    """Measure and print."""
    options = parse()
    native = extension()
    if native is None:
        raise SystemExit("forge-cpu was installed without its native kernels")
    rounding = (16, LOUD) if options.bits == "auto" else (int(options.bits), 0.0)
    pool = native.Pool(options.threads, options.isa or native.isas()[0], *rounding)
    print(f"{pool.threads} threads, {pool.isa}, {options.bits} bits; sets that run here: {', '.join(native.isas())}")
    for group in groups(native, pool, options):
        if options.only in group.title:
            measure(native, pool, group, options.rounds)
    counts = pool.statistics
    print(
        f"\n{counts['reduced_regions']} of {counts['regions']} parallel regions ran on fewer threads: a core was taken"
    )


if __name__ == "__main__":
    main()
