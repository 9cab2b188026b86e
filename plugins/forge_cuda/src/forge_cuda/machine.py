"""What this machine can run, for the probe and for errors; imports neither torch nor triton nor cupy."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

from forge import Probe
from forge.errors import ConfigError
from forge_cuda.driver import Device, DriverError, devices

OLDEST = (8, 0)
"""The kernels use Ampere's instructions: asynchronous copies, bfloat16 on tensor cores."""

BLACKWELL, BLACKWELL_CUDA = (10, 0), (12, 8)
"""The first compute capability of that generation, and the CUDA version that knows it."""

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
    device = usable[0]
    missing = missing_software(device)
    if missing is not None:
        return Probe(ok=False, detail=f"{device.name} is here, but {missing}")
    chosen = f" (with --device {device.index})" if device.index else ""
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    memory, capability = f"{device.memory / 2**30:.0f} GiB", dotted(device.capability)
    flaw = cupy_flaw(device)
    cupy = f"; {flaw}, so that decoding quantised weights is slower" if flaw else ""
    return Probe(
        ok=True,
        score=100,
        detail=f"{device.name}{chosen}{more}, {memory}, compute capability {capability}{cupy}",
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
        better = next((device for device in found if device.capability >= OLDEST), None)
        hint = "" if better is None else f"; device {better.index} ({better.name}) is new enough"
        raise ConfigError(f"backend.device: {_too_old(found[index])}{hint}", param="device")
    missing = missing_software(found[index])
    if missing is not None:
        raise ConfigError(f"backend 'cuda': {missing}", param="backend")
    return found[index]


def missing_software(device: Device) -> str | None:
    """What a user has to install before a GPU of sufficient age can be used; None if nothing."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return f"torch isn't installed ({INSTALL})"
    built_for = torch_cuda(Path(spec.origin))
    if built_for is None:
        return f"torch is a build without CUDA ({INSTALL})"
    if device.driver[0] < built_for[0]:  # within a major version drivers serve later minor ones
        return (
            f"its driver supports CUDA {dotted(device.driver)} and torch is built for CUDA {dotted(built_for)}:"
            f" update the driver, or install a torch for CUDA {device.driver[0]} ({INSTALL})"
        )
    if device.capability >= BLACKWELL and built_for < BLACKWELL_CUDA:
        return (
            f"compute capability {dotted(device.capability)} needs a torch for CUDA {dotted(BLACKWELL_CUDA)} or later;"
            f" this one is for CUDA {dotted(built_for)} ({INSTALL})"
        )
    if find_spec("triton") is None:
        return f"triton isn't installed; torch's CUDA builds for Linux bring it ({INSTALL})"
    return None


def torch_cuda(origin: Path) -> tuple[int, int] | None:
    """The CUDA version that an installed torch was built for, without importing it; None for a build without."""
    try:
        text = (origin.parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^cuda\s*(?::[^=]*)?=\s*['\"](\d+)\.(\d+)[\d.]*['\"]", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def cupy_flaw(device: Device) -> str | None:
    """Why CuPy can't be used with this device's driver; None if it can."""
    if find_spec("cupy") is None:
        return "without CuPy"
    for name in packages_distributions().get("cupy", ()):
        wheel = re.fullmatch(r"cupy-cuda(\d+)x", name)
        if wheel and int(wheel[1]) > device.driver[0]:
            return f"CuPy is for CUDA {wheel[1]} and the driver supports {dotted(device.driver)}"
    return None


def dotted(version: tuple[int, ...]) -> str:
    """As people write it."""
    return ".".join(map(str, version))


def _too_old(device: Device) -> str:
    has, needs = dotted(device.capability), dotted(OLDEST)
    return f"{device.name} has compute capability {has}; the kernels need {needs} (Ampere) or later"
