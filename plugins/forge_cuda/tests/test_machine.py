"""What the probe and the errors say about machines with and without a GPU, by a driver made of plain functions."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import attrs
import pytest
from attrs import evolve
from forge_cuda import CudaOptions, machine
from forge_cuda.backend import make_backend
from forge_cuda.driver import Device, DriverError, devices

from forge import plugins
from forge.errors import ConfigError

H100 = Device(0, "NVIDIA H100", (9, 0), 132, 80 << 30, (13, 0), clock=1.98e9, bandwidth=3352320000000.0)
T4 = Device(1, "Tesla T4", (7, 5), 40, 16 << 30, (13, 0))


class FakeDriver:
    """libcuda's functions, for the devices given; `failing` is the call that fails."""

    def __init__(self, *found: Device, failing: str = "") -> None:
        self.found, self.failing = found, failing

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("cu"):
            return lambda *args: 999 if name == self.failing else self.answer(name, *args)
        raise AttributeError(name)

    def answer(self, name: str, *args: Any) -> int:
        out = getattr(args[0], "_obj", args[0]) if args else None
        match name:
            case "cuInit":
                return 0 if self.found else 100
            case "cuDriverGetVersion":
                out.value = 13000
            case "cuDeviceGetCount":
                out.value = len(self.found)
            case "cuDeviceGet":
                out.value = args[1]
            case "cuDeviceGetName":
                out.value = self.found[args[2].value].name.encode()
            case "cuDeviceTotalMem_v2":
                out.value = self.found[args[1].value].memory
            case "cuDeviceGetAttribute":
                device = self.found[args[2].value]
                memory_clock = int(device.bandwidth * 8 / 5120 / 2e3)
                out.value = {
                    13: int(device.clock / 1e3), 16: device.multiprocessors, 36: memory_clock, 37: 5120,
                    75: device.capability[0], 76: device.capability[1],
                }[args[1]]  # fmt: skip
            case "cuGetErrorString":
                args[1]._obj.value = b"unknown error"
        return 0


def test_devices_are_read_from_the_driver() -> None:
    assert devices(lambda name: FakeDriver(H100, T4)) == [H100, T4]
    assert devices(lambda name: FakeDriver()) == []


def test_a_missing_or_failing_driver_is_an_error_in_one_line() -> None:
    with pytest.raises(DriverError, match=r"^no NVIDIA driver: libcuda\.so\.1 can't be loaded$"):
        devices(lambda name: ctypes.CDLL("libno-such-driver.so.1"))
    with pytest.raises(DriverError, match=r"cuDeviceGetName: unknown error \(999\)"):
        devices(lambda name: FakeDriver(H100, failing="cuDeviceGetName"))


def no_driver() -> list[Device]:
    raise DriverError("no NVIDIA driver: libcuda.so.1 can't be loaded")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (no_driver, "no NVIDIA driver"),
        (list, "no GPU that this process may use"),
        (lambda: [T4], r"Tesla T4 has compute capability 7\.5; the kernels need 8\.0"),
    ],
)
def test_the_probe_says_in_one_line_what_is_missing(found: Callable[[], list[Device]], words: str) -> None:
    result = machine.examine(found)
    assert not result.ok
    assert "\n" not in result.detail
    assert re.search(words, result.detail), result.detail


def test_the_probe_of_a_usable_machine_wins_over_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing_software", lambda device: None)
    monkeypatch.setattr(machine, "cupy_flaw", lambda device: "without CuPy")
    result = machine.examine(lambda: [T4, H100])
    assert result.ok
    assert result.score == 100
    assert result.detail == (
        "NVIDIA H100 and 1 more, 80 GiB, compute capability 9.0;"
        " without CuPy, so that decoding quantised weights is slower"
    )


def test_torchs_cuda_version_is_read_without_importing_it(tmp_path: Path) -> None:
    for line, wanted in [
        ("cuda: Optional[str] = '13.0'", (13, 0)),
        ("cuda = '12.6'", (12, 6)),
        ("cuda: Optional[str] = None", None),
    ]:
        (tmp_path / "version.py").write_text(f"debug = False\n{line}\nhip = None\n")
        assert machine.torch_cuda(tmp_path / "__init__.py") == wanted
    assert machine.torch_cuda(tmp_path / "nowhere" / "__init__.py") is None


@pytest.mark.parametrize(
    ("device", "cuda", "words"),
    [
        (H100, "None", "torch is a build without CUDA"),
        (evolve(H100, driver=(12, 4)), "'13.0'", r"supports CUDA 12\.4 and torch is built for CUDA 13\.0: update"),
        (evolve(H100, capability=(12, 0)), "'12.6'", r"compute capability 12\.0 needs a torch for CUDA 12\.8 or later"),
        (evolve(H100, driver=(12, 4)), "'12.9'", None),  # minor versions are served by earlier drivers
    ],
)
def test_a_torch_that_does_not_fit_the_gpu_is_named(
    device: Device, cuda: str, words: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "version.py").write_text(f"cuda: Optional[str] = {cuda}\n")
    spec = ModuleSpec("torch", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(machine, "find_spec", lambda name: spec)
    found = machine.missing_software(device)
    assert found is None if words is None else re.search(words, found or "")
    result = machine.examine(lambda: [device])
    assert result.ok == (words is None)
    assert "\n" not in result.detail


def test_what_else_can_be_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert "torch isn't installed" in (machine.missing_software(H100) or "")
    assert machine.cupy_flaw(H100) == "without CuPy"
    monkeypatch.setattr(machine, "torch_cuda", lambda origin: (13, 0))
    torch_only = ModuleSpec("torch", None, origin="torch/__init__.py")
    monkeypatch.setattr(machine, "find_spec", lambda name: torch_only if name == "torch" else None)
    assert "triton isn't installed" in (machine.missing_software(H100) or "")


def test_a_cupy_for_a_later_cuda_than_the_drivers_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: ModuleSpec(name, None))
    monkeypatch.setattr(machine, "packages_distributions", lambda: {"cupy": ["cupy-cuda13x"]})
    assert machine.cupy_flaw(evolve(H100, driver=(13, 1))) is None
    assert machine.cupy_flaw(evolve(H100, driver=(12, 9))) == "CuPy is for CUDA 13 and the driver supports 12.9"


def test_an_older_gpu_first_does_not_hide_a_newer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing_software", lambda device: None)
    order = lambda: [evolve(T4, index=0), evolve(H100, index=1)]  # noqa: E731
    assert machine.examine(order).detail.startswith("NVIDIA H100 (with --device 1) and 1 more, 80 GiB")
    with pytest.raises(ConfigError, match=r"Tesla T4 has .*; device 1 \(NVIDIA H100\) is new enough"):
        machine.choose(0, order)


def test_choosing_a_device_names_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "missing_software", lambda device: None)
    both = lambda: [H100, T4]  # noqa: E731
    assert machine.choose(0, both) == H100
    with pytest.raises(ConfigError, match=r"no GPU 7; there are 0: NVIDIA H100, 1: Tesla T4"):
        machine.choose(7, both)
    with pytest.raises(ConfigError, match=r"compute capability 7\.5"):
        machine.choose(1, both)
    monkeypatch.setattr(machine, "missing_software", lambda device: "torch is a build without CUDA")
    with pytest.raises(ConfigError, match="torch is a build without CUDA"):
        machine.choose(0, both)


def test_asking_for_the_backend_where_there_is_no_gpu_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "choose", lambda index: machine_choose(index, no_driver))
    with pytest.raises(ConfigError, match=r"backend 'cuda': no NVIDIA driver"):
        make_backend(0, None, CudaOptions())


machine_choose = machine.choose


def test_the_plugin_is_registered_and_its_probe_answers() -> None:
    registry = plugins.load()
    assert "cuda" in registry.names("backend")
    assert registry.options("backend", "cuda", {"kv_format": "int8"}) == CudaOptions(kv_format="int8")
    with pytest.raises(ConfigError, match="headroom_mib"):
        registry.options("backend", "cuda", {"headroom_mib": -1})
    result = registry.probe("backend", ["cuda"])["cuda"]
    assert result.detail
    assert "raised" not in result.detail


def test_registering_and_probing_imports_nothing_heavy() -> None:
    code = (
        "import sys, forge_cuda; forge_cuda.forge_backends(); forge_cuda.probe();"
        "heavy = {'torch', 'triton', 'cupy', 'numpy', 'gguf'} & set(sys.modules); sys.exit(repr(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_options_in_the_readme_are_the_defaults() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    table = tomllib.loads(shown)["backend"]["options"]
    assert CudaOptions(**table) == CudaOptions()
    assert set(table) == {field.name for field in attrs.fields(CudaOptions)}
