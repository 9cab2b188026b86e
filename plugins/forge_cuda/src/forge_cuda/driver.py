"""NVIDIA's driver, asked directly: which devices there are, without torch and without a CUDA toolkit.

https://docs.nvidia.com/cuda/cuda-driver-api/: the library comes with the driver, so that its absence is an answer too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from attrs import frozen

LIBRARY = "libcuda.so.1"

CLOCK, MULTIPROCESSORS, MEMORY_CLOCK, BUS_WIDTH, MAJOR, MINOR = 13, 16, 36, 37, 75, 76
"""CUdevice_attribute: clocks in kHz, the memory bus in bits, the two numbers of the compute capability."""

NO_DEVICE = 100
"""CUDA_ERROR_NO_DEVICE."""


class DriverError(Exception):
    """The driver is missing or can't be used; the message is one line."""


@frozen
class Device:
    """A GPU. capability: (major, minor). memory: bytes in all. driver: the CUDA version that it supports.

    clock: of its multiprocessors at most, in Hz. bandwidth: of its memory, bytes a second, as clock and bus make it.
    """

    index: int
    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory: int
    driver: tuple[int, int]
    clock: float = 0.0
    bandwidth: float = 0.0


def devices(load: Callable[[str], Any] = ctypes.CDLL) -> list[Device]:
    """All GPUs that this process may use, in CUDA's order; none if there is a driver and no GPU.

    Errors: `DriverError`.
    """
    try:
        library = load(LIBRARY)
    except OSError as error:
        raise DriverError(f"no NVIDIA driver: {LIBRARY} can't be loaded") from error
    status = library.cuInit(0)
    if status == NO_DEVICE:
        return []
    _check(library, status, "cuInit")
    version, count = ctypes.c_int(), ctypes.c_int()
    _check(library, library.cuDriverGetVersion(ctypes.byref(version)), "cuDriverGetVersion")
    _check(library, library.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
    driver = (version.value // 1000, version.value % 1000 // 10)
    return [_device(library, index, driver) for index in range(count.value)]


def _device(library: Any, index: int, driver: tuple[int, int]) -> Device:
    handle = ctypes.c_int()
    _check(library, library.cuDeviceGet(ctypes.byref(handle), index), "cuDeviceGet")
    name = ctypes.create_string_buffer(256)
    _check(library, library.cuDeviceGetName(name, len(name), handle), "cuDeviceGetName")
    memory = ctypes.c_size_t()
    _check(library, library.cuDeviceTotalMem_v2(ctypes.byref(memory), handle), "cuDeviceTotalMem")

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        _check(library, library.cuDeviceGetAttribute(ctypes.byref(value), number, handle), "cuDeviceGetAttribute")
        return value.value

    return Device(
        index=index,
        name=name.value.decode(errors="replace"),
        capability=(attribute(MAJOR), attribute(MINOR)),
        multiprocessors=attribute(MULTIPROCESSORS),
        memory=memory.value,
        driver=driver,
        clock=1e3 * attribute(CLOCK),
        bandwidth=2e3 * attribute(MEMORY_CLOCK) * attribute(BUS_WIDTH) / 8,  # two transfers a clock
    )


def _check(library: Any, status: int, call: str) -> None:
    if status == 0:
        return
    text = ctypes.c_char_p()
    library.cuGetErrorString(status, ctypes.byref(text))
    raise DriverError(f"the NVIDIA driver failed in {call}: {(text.value or b'unknown error').decode()} ({status})")
