"""A model file through the real engine, on kernels in Triton's interpreter, gives what plain torch gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from attrs import evolve
from forge_cuda import CudaOptions
from forge_cuda.backend import CudaBackend, interpreted
from forge_cuda.testing import steps

from forge import LLM
from forge.testing.models import write_tiny_llama
from forge.testing.stack import Run, StackConformance
from forge.testing.workbench import SPEC

PROMPTS = ["Hello, world", "The quick brown fox jumps over the lazy dog, and then", "1 2 3"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


def answers(path: Path, config: str, where: Path, **fields: Any) -> list[list[int]]:
    """Token ids of the answers to all prompts, in one batch."""
    (where / "forge.toml").write_text(config)
    with LLM(path, config=where / "forge.toml", num_blocks=60) as llm:
        return [
            output.choices[0].token_ids for output in llm.generate(PROMPTS, max_tokens=6, ignore_eos=True, **fields)
        ]


CUDA = '[backend]\nname = "cuda"\n[backend.options]\ninterpret = true\ndtype = "float32"\n'


@pytest.mark.quick
def test_greedy_tokens_are_those_of_the_torch_backend(tiny: Path, tmp_path: Path) -> None:
    wanted = answers(tiny, '[backend]\nname = "torch"\nthreads = 1\n', tmp_path, temperature=0)
    assert answers(tiny, CUDA, tmp_path, temperature=0) == wanted
    assert all(len(tokens) == 6 for tokens in wanted)


def test_sampled_tokens_are_those_of_the_torch_backend(tiny: Path, tmp_path: Path) -> None:
    fields: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "seed": 5, "frequency_penalty": 0.5}
    wanted = answers(tiny, '[backend]\nname = "torch"\nthreads = 1\n', tmp_path, **fields)
    assert answers(tiny, CUDA, tmp_path, **fields) == wanted


def quantised(source: Path, target: Path) -> Path:
    """The same model with Q8_0 weights."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        kind = field.types[0] if field.types else None
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or kind is None:
            continue
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    for tensor in reader.tensors:
        if len(tensor.shape) == 1:
            writer.add_tensor(tensor.name, np.array(tensor.data))
            continue
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(tensor.name, gguf.quants.quantize(np.array(tensor.data), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_tokens_of_a_quantised_model_are_those_of_the_torch_backend(tiny: Path, tmp_path: Path) -> None:
    path = quantised(tiny, tmp_path / "q8.gguf")
    wanted = answers(path, '[backend]\nname = "torch"\nthreads = 1\n', tmp_path, temperature=0)
    assert answers(path, CUDA, tmp_path, temperature=0) == wanted


class Recorder:
    """Stands for CUDA graphs: a recorded step runs again on the memory that it was recorded with."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, step: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
        self.recorded += 1
        result = step().clone()

        def replay() -> torch.Tensor:
            self.replayed += 1
            return result.copy_(step())

        return replay


def test_recorded_decode_steps_read_each_steps_inputs_and_never_their_padding() -> None:
    recorder = Recorder()
    options = CudaOptions(dtype="float32", interpret=True)
    backend = CudaBackend(evolve(interpreted(options), record=recorder), options)
    plain = CudaBackend(interpreted(options), options)
    kit = StackConformance()
    sequences = kit.sequences(12, 15, 9)
    found, wanted = (Run(b, kit.model(b, SPEC), sequences) for b in (backend, plain))
    steps = [
        [(0, 0, 8), (1, 0, 11), (2, 0, 5)],
        [(0, 8, 1), (1, 11, 1), (2, 5, 1)],
        [(0, 9, 1), (1, 12, 1), (2, 6, 1)],
        [(2, 7, 1), (0, 10, 1), (1, 13, 1)],
        [(1, 14, 1), (0, 11, 1), (2, 8, 1)],
    ]
    for step in steps:
        stops = {index: start + length for index, start, length in step}
        for run in (found, wanted):  # sequences as long as this step computes them: their last rows are drawn from
            run.sequences = [
                evolve(seq, tokens=seq.tokens[: stops[seq.id]], prompt_logprobs=False) for seq in sequences
            ]
        result, expected = found.step(*step), wanted.step(*step)
        assert len(result) == 3
        kit.close(result, expected)
    assert (recorder.recorded, recorder.replayed) == (1, 3)


def test_inputs_whose_memory_was_taken_over_are_refused() -> None:
    options = CudaOptions(dtype="float32", interpret=True)
    backend = CudaBackend(evolve(interpreted(options), record=Recorder()), options)
    kit = StackConformance()
    run = Run(backend, kit.model(backend, SPEC), kit.sequences(1, 1))
    first = run.stage((0, 0, 1))
    run.stage((1, 0, 1))
    with pytest.raises(ValueError, match="staged before others"):
        backend.forward(run.model, first)


def test_two_devices_work_side_by_side() -> None:
    options = CudaOptions(dtype="float32", interpret=True)
    backends = [CudaBackend(interpreted(options), options) for _ in range(2)]
    runs = [steps.Run(steps.TinyModel(backend), (9, 12)) for backend in backends]
    first = [run.step((0, 0, 8)) for run in runs]
    second = [run.step((0, 8, 1), (1, 0, 5)) for run in reversed(runs)]  # in turns, neither disturbs the other
    assert torch.equal(first[0], first[1])
    assert torch.equal(second[0], second[1])
