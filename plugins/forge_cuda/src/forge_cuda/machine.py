"""What this machine can run, for the probe and for errors; imports neither torch nor triton nor cupy."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from forge import Probe
from forge.errors import ConfigError
from forge_cuda.driver import Device, DriverError, devices

OLDEST = (8, 0)
"""The kernels use Ampere's instructions: asynchronous copies, bfloat16 on tensor cores."""

INSTALL = "see forge-cuda's README"


def examine(list_devices: Callable[[], list[Device]] = devices) -> Probe:
    """One line about the best GPU here, or about what is missing."""
    try:
        found = list_devices()
    except DriverError as error:
        return Probe(ok=False, detail=str(error))
    if not found:
        return Probe(ok=False, detail="the NVIDIA driver is installed, but there is no GPU that this process may use")
    usable = [device for device in found if device.capability >= OLDEST]
    if not usable:
        return Probe(ok=False, detail=_too_old(found[0]))
    missing = missing_software()
    if missing is not None:
        return Probe(ok=False, detail=f"{usable[0].name} is here, but {missing}")
    device = usable[0]
    others = f", device {device.index}" if device.index else ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    capability = ".".join(map(str, device.capability))
    cupy = "" if has_cupy() else "; without CuPy, so that decoding quantised weights is slower"
    return Probe(
        ok=True,
        score=100,
        detail=f"{device.name}{others}{more}, {device.memory / 2**30:.0f} GiB, compute capability {capability}{cupy}",
    )


def choose(index: int, list_devices: Callable[[], list[Device]] = devices) -> Device:
    """The GPU of that index, known to be usable. Errors: `ConfigError` that names what is missing."""
    try:
        found = list_devices()
    except DriverError as error:
        raise ConfigError(f"backend 'cuda': {error}", param="backend") from error
    if not found:
        raise ConfigError("backend 'cuda': there is no GPU that this process may use", param="backend")
    if not 0 <= index < len(found):
        names = ", ".join(f"{device.index}: {device.name}" for device in found)
        raise ConfigError(f"backend.device: there is no GPU {index}; there are {names}", param="device")
    if found[index].capability < OLDEST:
        raise ConfigError(f"backend.device: {_too_old(found[index])}", param="device")
    missing = missing_software()
    if missing is not None:
        raise ConfigError(f"backend 'cuda': {missing}", param="backend")
    return found[index]


def missing_software() -> str | None:
    """What a user has to install before a usable GPU can be used; None if nothing."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return f"torch isn't installed ({INSTALL})"
    if torch_cuda(Path(spec.origin)) is None:
        return f"torch is a build without CUDA ({INSTALL})"
    if find_spec("triton") is None:
        return f"triton isn't installed; torch's CUDA builds for Linux bring it ({INSTALL})"
    return None


def torch_cuda(origin: Path) -> str | None:
    """The CUDA version that an installed torch was built for, without importing it; None for a build without."""
    try:
        text = (origin.parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"]([\d.]+)['\"]", text, re.MULTILINE)
    return found[1] if found else None


def has_cupy() -> bool:
    """Whether CuPy is installed, whatever its wheel is called."""
    return find_spec("cupy") is not None


def _too_old(device: Device) -> str:
    has, needs = (".".join(map(str, pair)) for pair in (device.capability, OLDEST))
    return f"{device.name} has compute capability {has}; the kernels need {needs} (Ampere) or later"
