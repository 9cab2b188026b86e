"""What the native kernels reach, beside what this machine can do at most: `python benchmarks/kernels.py [--threads N]`.

Linear layers of SmolLM2-135M and of a Llama of 1.1 billion weights, in GB/s of weights read (the limit for a few rows)
and in Gop/s, a multiplication and an addition counted as two (the limit for many). The best of several rounds, which
visit all row counts in turn, so that a disturbance harms all alike. Weights are random: only their size matters. Of the
activations' blocks one in seven has a value that stands out, as in SmolLM2: with --bits auto it gets a second term.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import numpy.typing as npt
from forge_cpu.backend import LOUD
from forge_cpu.machine import usable_cores
from forge_cpu.native import extension
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

SHAPES = [
    ("SmolLM2 q, k, v", 960, 576),
    ("SmolLM2 gate, up", 3072, 576),
    ("SmolLM2 down", 576, 1536),
    ("SmolLM2 head", 49152, 576),
    ("1.1B gate, up", 11264, 2048),
    ("1.1B down", 2048, 5632),
]
SMALL, LARGE = ("Q4_1", "Q8_0"), ("Q4_K", "Q6_K")
"""Encodings measured by default: those that the models have."""

COLD = 192 << 20
"""Bytes of weights that a pass goes through, so that they come from memory and not from a cache."""


def random_blocks(encoding: str, rows: int, cols: int) -> npt.NDArray[np.uint8]:
    """Bytes of a GGUF tensor whose float16 scales, wherever they lie, are finite."""
    per_block, size = GGML_QUANT_SIZES[GGMLQuantizationType[encoding]]
    data = np.random.default_rng(0).integers(0, 256, (rows, cols // per_block * size), dtype=np.uint8)
    return data & 0x3F


def random_activations(rows: int, cols: int) -> npt.NDArray[np.float32]:
    """Normal numbers and some that stand out from their row."""
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, cols), dtype=np.float32)
    x.reshape(rows, -1, 32)[..., 5][rng.random((rows, cols // 32)) < 1 / 7] = 20
    return x


class Case:
    """One shape in one encoding with so many activation rows: as many copies side by side as fill COLD."""

    def __init__(self, native: object, pool: object, encoding: str, rows: int, cols: int) -> None:
        self.native, self.pool, self.rows, self.cols = native, pool, rows, cols
        data = random_blocks(encoding, rows, cols)
        copies = max(1, COLD // data.nbytes)
        self.many = self._packed(encoding, data, copies)
        self.few = self._packed(encoding, data, min(copies, max(1, (8 << 20) // data.nbytes)))
        self.best: dict[int, float] = {}

    def _packed(self, encoding: str, data: npt.NDArray[np.uint8], copies: int) -> object:
        matrix = self.native.Matrix([(encoding, self.rows)] * copies, self.cols)
        for segment in range(copies):
            matrix.pack(self.pool, segment, 0, data)
        return matrix

    def run(self, n: int) -> None:
        """One timed pass with n activation rows."""
        matrix = self.many if n <= 16 else self.few
        x = random_activations(n, self.cols)
        out = np.ones((n, matrix.out_features), np.float32)  # touched: page faults aren't the kernel's
        start = time.perf_counter()
        self.native.linear(self.pool, x, matrix, None, out)
        seconds = (time.perf_counter() - start) / (matrix.out_features / self.rows)
        self.best[n] = min(seconds, self.best.get(n, seconds))

    def report(self, n: int, bandwidth: float, peak: float) -> str:
        """Best time of one copy, with its share of the two ceilings."""
        matrix = self.many if n <= 16 else self.few
        seconds = self.best[n]
        read = matrix.nbytes * self.rows / matrix.out_features / seconds * 1e-9
        done = 2.0 * n * self.rows * self.cols / seconds * 1e-9
        return (
            f"{n:>6} {seconds * 1e6:>10.1f} {read:>8.1f} {100 * read / bandwidth:>4.0f}% "
            f"{done:>8.1f} {100 * done / peak:>4.0f}%"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--isa", help="instruction set; the best that runs here unless given")
    parser.add_argument("--encodings", nargs="*", help="instead of those that the models use")
    parser.add_argument("--bits", choices=["auto", "8", "16"], default="auto", help="of activations")
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 4, 8, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="shapes whose name contains this")
    options = parser.parse_args()
    native = extension()
    if native is None:
        raise SystemExit("forge-cpu was installed without its native kernels")
    rounding = (16, LOUD) if options.bits == "auto" else (int(options.bits), 0.0)
    pool = native.Pool(options.threads, options.isa or native.isas()[0], *rounding)
    print(f"{pool.threads} threads, {pool.isa}, {options.bits} bits; sets that run here: {', '.join(native.isas())}")
    for name, rows, cols in SHAPES:
        if options.only and options.only not in name:
            continue
        for encoding in options.encodings or (LARGE if cols % 256 == 0 and cols >= 2048 else SMALL):
            case = Case(native, pool, encoding, rows, cols)
            bandwidth, peak = 0.0, 0.0
            for _ in range(options.rounds):
                bandwidth = max(bandwidth, native.measure_bandwidth(pool, COLD))
                peak = max(peak, native.measure_dot(pool))
                for n in options.rows:
                    case.run(n)
            print(f"\n{name}: {cols} → {rows}, {encoding}; ceilings {bandwidth:.1f} GB/s, {peak:.0f} Gop/s")
            print(f"{'rows':>6} {'µs':>10} {'GB/s':>8} {'':>5} {'Gop/s':>8}")
            for n in options.rows:
                print(case.report(n, bandwidth, peak))
    counts = pool.statistics
    print(
        f"\n{counts['reduced_regions']} of {counts['regions']} parallel regions ran on fewer threads: a core was taken"
    )


if __name__ == "__main__":
    main()
