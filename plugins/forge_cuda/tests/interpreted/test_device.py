"""What the backend asks of a GPU, on stand-ins: memory and its errors, copies to the host, graphs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from forge_cuda import CudaOptions, machine
from forge_cuda.backend import CudaBackend, DeviceLost, Place, make_backend
from forge_cuda.driver import Device
from forge_cuda.graphs import Graphs, record
from forge_cuda.staging import SIZES
from forge_cuda.testing.draws import neutral
from forge_cuda.testing.steps import VOCABULARY, Run, TinyModel
from torch.overrides import TorchFunctionMode

from forge.errors import ConfigError

pytestmark = pytest.mark.quick

H100 = Device(0, "NVIDIA H100", (9, 0), 132, 80 << 30, (13, 0))
FREE, TOTAL = 70 << 30, 80 << 30


def nothing(kernel: Any, grid: tuple[int, ...], *args: Any, **meta: Any) -> None:
    """A launcher for tensors that have no values."""


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> CudaBackend:
    """A backend on a device that isn't there: torch's questions to the driver are answered here."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE, TOTAL))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    return CudaBackend(Place(torch.device("cuda", 0), 132, nothing), CudaOptions(headroom_mib=2048))


def test_free_memory_is_what_is_left_beside_the_headroom(gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gpu.memory() == (FREE - (2048 << 20), TOTAL)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 30, TOTAL))
    assert gpu.memory() == (0, TOTAL)


def test_running_out_of_memory_is_an_error_with_figures_and_remedies(
    gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any, **more: Any) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr("forge_cuda.backend.CudaPages", refuse)
    with pytest.raises(ConfigError) as raised:
        gpu.kv_pages(Any, 100, 16)  # type: ignore[arg-type]
    message = raised.value.message
    assert "NVIDIA H100 has too little memory for the pages of the KV cache" in message
    assert "70.0 of 80.0 GiB are free" in message
    assert "kv_cache.options.memory_fraction" in message
    assert "\n" not in message


def test_a_fault_of_the_device_ends_the_process_instead_of_failing_every_request(
    gpu: CudaBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*arguments: Any, **more: Any) -> None:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCompile with …")

    monkeypatch.setattr("forge_cuda.backend.CudaPages", fault)
    with pytest.raises(DeviceLost) as raised:
        gpu.kv_pages(Any, 100, 16)  # type: ignore[arg-type]
    assert not isinstance(raised.value, Exception), "the engine would run the step again, sequence by sequence"
    assert str(raised.value).startswith(
        "GPU 0 failed at the pages of the KV cache: CUDA error: an illegal memory access was encountered (to find"
    )
    monkeypatch.setattr(torch.cuda, "empty_cache", fault)
    gpu.close()


def test_cupy_is_asked_for_only_where_its_products_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "choose", lambda index: H100)
    monkeypatch.setattr(machine, "cupy_flaw", lambda device: "without CuPy")
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    with pytest.raises(ConfigError, match=r"decode_products: int8 .*without CuPy.*forge-cuda\[cu13\]"):
        make_backend(0, None, CudaOptions(decode_products="int8"))
    backend = make_backend(0, None, CudaOptions(graphs=False))
    assert isinstance(backend, CudaBackend)
    assert backend.place.products is None
    assert backend.place.record is None
    recording = make_backend(0, None, CudaOptions(decode_products="float"))
    assert isinstance(recording, CudaBackend)
    assert recording.place.record is not None


def test_the_device_asked_for_is_where_everything_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(machine, "choose", lambda index: asked.append(index) or H100)
    monkeypatch.setattr(machine, "cupy_flaw", lambda device: "without CuPy")
    backend = make_backend(3, None, CudaOptions(graphs=False))
    assert asked == [3]
    assert backend.device == torch.device("cuda", 3)


class HostCopies(TorchFunctionMode):
    """Counts what a step brings to the host. Tensors without values refuse every other way to look at them."""

    def __init__(self) -> None:
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.cpu and args[0].is_meta:
            self.count += 1
            return torch.ones(args[0].shape, dtype=args[0].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("record", [None, lambda step: step], ids=["plain", "graphs"])
def test_a_step_copies_to_the_host_once(record: Any) -> None:
    backend = CudaBackend(Place(torch.device("meta"), 132, nothing, record=record), CudaOptions())
    run = Run(TinyModel(backend), (14, 17))
    sampling = neutral(2, top_p=np.full(2, 0.9, np.float32), masks=np.full((2, 3), -1, np.int32), logprobs=3)
    for start in (8, 9, 10):
        with HostCopies() as copies:
            hidden = run.step((0, start, 1), (1, start, 1))
            (logits,) = run.model.logits(hidden)
            assert logits.shape == (2, VOCABULARY)
            backend.sample(logits, sampling)
        assert copies.count == 1


def steps(values: list[float]) -> Iterator[Callable[[], torch.Tensor]]:
    for value in values:
        yield lambda value=value: torch.tensor([value])  # type: ignore[misc]


def test_a_size_is_recorded_the_second_time_it_comes() -> None:
    recorded: list[Any] = []

    def record(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        recorded.append(step())
        return lambda: torch.tensor([-1.0])

    graphs = Graphs(record)
    plain, captured, replayed = (float(graphs.run((0, (4, 16)), step)) for step in steps([1.0, 2.0, 3.0]))
    assert (plain, captured, replayed) == (1.0, -1.0, -1.0)
    assert [float(x) for x in recorded] == [2.0]
    assert float(graphs.run((0, (8, 16)), next(steps([4.0])))) == 4.0
    graphs.clear()
    assert float(graphs.run((0, (4, 16)), next(steps([5.0])))) == 5.0


def test_a_recorded_step_replays_into_the_tensor_that_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Any] = []

    class FakeGraph:
        def replay(self) -> None:
            happened.append("replay")

    @contextmanager
    def capture(graph: FakeGraph, pool: Any, capture_error_mode: str) -> Iterator[None]:
        happened.append((type(graph), pool, capture_error_mode))
        yield
        happened.append("end")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    result = torch.zeros(1)
    replay = record(lambda: happened.append("step") or result, pool=(1, 2))
    assert replay() is result
    assert replay() is result
    assert happened == [(FakeGraph, (1, 2), "thread_local"), "step", "end", "replay", "replay"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(torch.cuda.OutOfMemoryError("no"), "no memory for more CUDA graphs"),
     (torch.AcceleratorError("CUDA error: operation not permitted"), "can't be recorded .*: .*not permitted")],
)  # fmt: skip
def test_where_graphs_fail_steps_go_on_without(error: Exception, words: str, caplog: pytest.LogCaptureFixture) -> None:
    def record(step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        raise error

    graphs = Graphs(record)
    assert [float(graphs.run(1, step)) for step in steps([1.0, 2.0, 3.0])] == [1.0, 2.0, 3.0]
    (said,) = [record.getMessage() for record in caplog.records]
    assert re.search(words, said)


def test_decodes_are_padded_to_few_sizes_and_prompts_are_not() -> None:
    backend = CudaBackend(Place(torch.device("meta"), 132, nothing, record=lambda step: step), CudaOptions())
    count = 35
    run = Run(TinyModel(backend), (20,) * count)
    keys = set()
    for sequences in range(1, count + 1):
        staged: Any = run.stage(*((i, 9, 1) for i in range(sequences)))
        assert staged.padded.key[0] == min(size for size in SIZES if size >= sequences)
        assert len(staged.padded.token_ids) == staged.padded.key[0]
        assert len(staged.token_ids) == sequences
        keys.add(staged.padded.key)
    assert [size for size, _ in sorted(keys)] == [1, 2, 4, 8, 16, 24, 32, 48]
    prompt: Any = run.stage((0, 0, 8), (1, 9, 1))
    assert prompt.padded is None
