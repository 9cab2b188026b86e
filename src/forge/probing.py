"""Asks components whether they can run here, each in a child process: drivers abort, hang and print as they please.

``python -m forge.probing MODULE FUNCTION`` is that child. Knows nothing of the registry.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import IO, Any

from attrs import asdict, frozen

from forge.hookspecs import Probe

TAIL = 4096
"""How much of a child's last words is looked at, in bytes."""


@frozen
class _Child:
    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    words: IO[bytes]


def run(probes: Mapping[str, Callable[[], Probe]], timeout: float) -> dict[str, Probe]:
    """The results of module-level functions, run at the same time, by the same keys.

    timeout: seconds for all of them together. Whatever goes wrong in a child becomes a `Probe` that isn't ok and says
    so: an exception, an abort, a wrong result, no result in time.
    """
    deadline = time.monotonic() + timeout
    with contextlib.ExitStack() as stack:
        children = {key: stack.enter_context(_child(probe)) for key, probe in probes.items()}
        return {key: _result(child, deadline, timeout) for key, child in children.items()}


@contextlib.contextmanager
def _child(probe: Callable[[], Probe]) -> Iterator[_Child]:
    # Files rather than pipes: nobody has to drain them, and a grandchild that survives can't hold them open against us.
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "forge.probing", probe.__module__, probe.__qualname__],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=words,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # so that its own children end with it
        )
        try:
            yield _Child(process, answer, words)
        finally:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in a driver: the system will reap it some day
            process.wait(timeout=1.0)


def _result(child: _Child, deadline: float, timeout: float) -> Probe:
    try:
        status = child.process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Probe(ok=False, detail=f"its probe gave no answer within {timeout:g} s")
    if status < 0:
        return Probe(ok=False, detail=f"its probe was killed by {_signal_name(-status)}{_last_line(child.words)}")
    child.answer.seek(0)
    try:
        return Probe(**json.loads(child.answer.read()))
    except (ValueError, TypeError):
        return Probe(ok=False, detail=f"its probe ended with status {status} and no answer{_last_line(child.words)}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_line(words: IO[bytes]) -> str:
    words.seek(max(0, words.seek(0, os.SEEK_END) - TAIL))
    lines = words.read().decode(errors="replace").split("\n")
    return next((f": {line.strip()[:200]}" for line in reversed(lines) if line.strip()), "")


# ---------------------------------------------------------------------------------------------------- in the child


def _ask(module: str, function: str) -> Probe:
    try:
        target: Any = import_module(module)
        for name in function.split("."):
            target = getattr(target, name)
        result = target()
    except BaseException as exc:  # SystemExit and the panics of native extensions too: this process is made for them
        return Probe(ok=False, detail=f"its probe raised {type(exc).__name__}: {exc}")
    if not isinstance(result, Probe):
        return Probe(ok=False, detail=f"its probe returned a {type(result).__name__}, not a Probe")
    return result


def main() -> None:
    """Run one probe and write its result to standard output, alone: what else is printed goes to standard error."""
    answer = os.dup(1)
    os.dup2(2, 1)
    _leave_no_core()
    result = json.dumps(asdict(_ask(sys.argv[1], sys.argv[2]))).encode()
    with os.fdopen(answer, "wb") as file:
        file.write(result)
    os._exit(0)  # a driver's exit handlers may still hang or crash, and nothing here needs them


def _leave_no_core() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
