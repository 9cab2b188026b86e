"""Every kernel against a reference in float64, on the GPU: ``python -m forge_cuda.selftest [--device N]``.

To look for races and stray accesses besides: ``compute-sanitizer --tool memcheck python -m forge_cuda.selftest`` (also
``racecheck``, ``initcheck``). The tests run the same cases in Triton's interpreter.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from forge.errors import ConfigError
from forge_cuda import CudaOptions
from forge_cuda.backend import CudaBackend, make_backend

DTYPES: tuple[Literal["float16", "bfloat16"], ...] = ("float16", "bfloat16")
HINT = "races and stray accesses: compute-sanitizer --tool memcheck|racecheck|initcheck python -m forge_cuda.selftest"


def rounds(options: Sequence[CudaOptions], device: int) -> Iterator[tuple[str, bool]]:
    """Run all cases with each of the options: a line about each, and whether it passed. Errors: `ConfigError`."""
    from forge_cuda.testing.cases import cases
    from forge_cuda.testing.draws import sampling_cases
    from forge_cuda.testing.steps import step_cases

    for number, option in enumerate(options):
        backend = make_backend(device, None, option)
        assert isinstance(backend, CudaBackend)
        for case in (*cases(), *step_cases(), *(sampling_cases() if number == 0 else ())):
            error, tolerance = case.error(backend)
            verdict = "ok" if error <= tolerance else "FAILED"
            line = f"{option.dtype:9} {option.decode_products:6} {case.name:50}"
            yield f"{line} error {error:.1e} of {tolerance:.0e}  {verdict}", error <= tolerance
        backend.close()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run everything in each dtype; 0 if all is within tolerance, 1 if not, 2 if there is no GPU to run on."""
    parser = argparse.ArgumentParser(prog="python -m forge_cuda.selftest", description=__doc__)
    parser.add_argument("--device", type=int, default=0, help="which GPU")
    parser.add_argument("--interpret", action="store_true", help="in Triton's interpreter on the CPU: takes minutes")
    parsed = parser.parse_args(arguments)
    interpret = parsed.interpret
    options = [CudaOptions(dtype="float32", decode_products="float", interpret=interpret)]
    for dtype in DTYPES:
        options.append(CudaOptions(dtype=dtype, decode_products="float", interpret=interpret))
        if not interpret:
            options.append(CudaOptions(dtype=dtype))
    failures = 0
    try:
        for line, passed in rounds(options, parsed.device):
            print(line, flush=True)
            failures += not passed
    except ConfigError as refused:
        print(refused.message, file=sys.stderr)
        return 2
    print(f"{failures} failed" if failures else "all passed")
    print(HINT)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
