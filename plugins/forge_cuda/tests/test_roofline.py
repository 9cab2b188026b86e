"""The roofline of models and devices whose figures are known, and the shares of it in a report of `forge bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from attrs import evolve
from forge_cuda.driver import Device
from forge_cuda.roofline import Burden, Peak, main, peak_of, weigh

from forge import plugins
from forge.bench.report import to_json
from forge.bench.settings import Settings, Stage
from forge.bench.stats import StageResult, Summary
from forge.errors import ConfigError
from forge.interfaces.loader import Checkpoint, GenerationDefaults, TokenizerSource, Weight
from forge.testing.models import write_tiny_llama

H100 = Device(0, "NVIDIA H100 80GB HBM3", (9, 0), 132, 80 << 30, (13, 0), clock=1.83e9, bandwidth=3.35e12)


class Shape(Weight):
    """A tensor without values."""

    def __init__(self, name: str, *shape: int, encoding: str = "BF16") -> None:
        self.name, self.shape, self.encoding = name, shape, encoding

    @property
    def nbytes(self) -> int:
        block, each = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[self.encoding]]
        return int(np.prod(self.shape)) // block * each

    @property
    def data(self) -> npt.NDArray[np.uint8]:
        raise AssertionError("a roofline reads no weights")

    def dequantize(self, start: int = 0, stop: int | None = None) -> npt.NDArray[np.float32]:
        raise AssertionError("a roofline reads no weights")

    def release(self) -> None: ...


def llama_8b(encoding: str) -> Checkpoint:
    """Llama-3.1-8B's shapes."""
    tensors = [Shape("token_embd.weight", 128256, 4096), Shape("output.weight", 128256, 4096, encoding=encoding)]
    tensors.append(Shape("output_norm.weight", 4096, encoding="F32"))
    for i in range(32):
        tensors += [Shape(f"blk.{i}.{name}_norm.weight", 4096, encoding="F32") for name in ("attn", "ffn")]
        for name, rows, columns in (
            ("attn_q", 4096, 4096), ("attn_k", 1024, 4096), ("attn_v", 1024, 4096), ("attn_output", 4096, 4096),
            ("ffn_gate", 14336, 4096), ("ffn_up", 14336, 4096), ("ffn_down", 4096, 14336),
        ):  # fmt: skip
            tensors.append(Shape(f"blk.{i}.{name}.weight", rows, columns, encoding=encoding))
    metadata = {
        "llama.block_count": 32,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 500000.0,
        "llama.vocab_size": 128256,
    }
    return Checkpoint(
        "gguf", Path("8b.gguf"), "llama", metadata, {tensor.name: tensor for tensor in tensors},
        TokenizerSource("gguf"), GenerationDefaults(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def registry() -> plugins.Registry:
    return plugins.load()


def test_the_table_of_the_readme_is_what_its_formula_gives(registry: plugins.Registry) -> None:
    burden, peak = weigh(llama_8b("BF16"), registry), Peak("H100", 3.35e12, 989e12)
    assert burden.products == 7_504_658_432  # 8.03 billion parameters without the embedding table and the norms
    assert burden.kv_bytes == 2 * 2 * 32 * 8 * 128
    rates = [burden.decode(peak, count, 1024) for count in (1, 8, 64)]
    assert rates == pytest.approx([221, 1666, 9085], rel=0.005)
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    for count, rate in zip((1, 8, 64), (221, 1666, 9085)):
        assert f"| BF16 | {count} | {rate:,} |" in text


def test_fewer_bits_are_a_higher_roof(registry: plugins.Registry) -> None:
    peak = Peak("H100", 3.35e12, 989e12)
    bf16, q4 = (weigh(llama_8b(encoding), registry) for encoding in ("BF16", "Q4_0"))
    assert q4.weight_bytes * 32 == bf16.weight_bytes * 9
    assert q4.products == bf16.products
    assert 3.4 < q4.decode(peak, 1, 1024) / bf16.decode(peak, 1, 1024) < 3.6


def test_prompts_are_bound_by_the_tensor_cores() -> None:
    burden = Burden(weight_bytes=0, products=1_000_000, kv_bytes=0, attention=100)
    peak = Peak("a device", 1.0, 4e12)
    assert burden.prompt(peak, 0) == pytest.approx(2e6)
    assert burden.prompt(peak, 20_000) == pytest.approx(1e6), "half of the work is attention then"


def test_peaks_are_those_of_the_data_sheets() -> None:
    assert peak_of(H100).operations == pytest.approx(989e12, rel=0.01)
    a100 = evolve(H100, name="NVIDIA A100", capability=(8, 0), multiprocessors=108, clock=1.41e9)
    assert peak_of(a100).operations == pytest.approx(312e12, rel=0.01)
    geforce = evolve(H100, name="NVIDIA GeForce RTX 4090", capability=(8, 9), multiprocessors=128, clock=2.52e9)
    assert peak_of(geforce).operations == pytest.approx(165e12, rel=0.01)
    assert peak_of(H100, bandwidth=1e12).bandwidth == 1e12
    with pytest.raises(ConfigError, match=r"compute capability 13\.5.*--tflops"):
        peak_of(evolve(H100, capability=(13, 5)))


def stage_of(streams: int | None) -> Stage:
    return Stage(concurrency=streams, rate=None if streams else 2.0, requests=4, warmup=1)


def test_a_report_of_forge_bench_gets_its_roofline_beside_each_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_tiny_llama(tmp_path / "tiny.gguf")
    settings = Settings(url="http://localhost:1", prompt_tokens=100, output_tokens=20, concurrency=(1, 8))
    results = [
        StageResult(
            stage=stage, duration=1.0, completed=2, failures={}, reasons={}, prompt_tokens=200, output_tokens=40,
            request_rate=2.0, output_rate=40.0, total_rate=240.0, goodput=None, ttft=Summary.of([0.01]),
            itl=Summary.of([0.002]), tpot=Summary.of([0.002]), e2e=Summary.of([0.05]), outcomes=(),
        )
        for stage in (stage_of(1), stage_of(8), stage_of(None))
    ]  # fmt: skip
    report = tmp_path / "report.json"
    report.write_text(json.dumps(to_json(settings, results, requests=False)))
    arguments = [str(model), "--bandwidth", "1", "--tflops", "0.01", "--report", str(report), "--kv-format", "f32"]
    assert main(arguments) == 0
    head, titles, *lines = capsys.readouterr().out.splitlines()
    assert "1 GB/s, 0 TFLOP/s" in head
    assert titles.split() == ["measured,", "tok/s", "at", "most", "share"]
    # 2 layers of 36,864 weights and 264 x 64 of the output, four bytes each; 512 bytes of cache a position.
    weights, cache = 4 * (2 * 36864 + 264 * 64), 2 * 2 * 2 * 16 * 4
    for line, streams in zip((lines[0], lines[2]), (1, 8)):
        most = streams * 1e9 / (weights + streams * 110 * cache)
        assert line.split()[-5:] == [f"{streams / 0.002:,.1f}", f"{most:,.0f}", f"{streams / 0.002 / most:.0%}",
                                     "of", "bandwidth"]  # fmt: skip
    assert lines[1].split()[:4] == ["prompt", "of", "100", "10,000.0"]
    assert "no roofline" in lines[3]


def test_what_is_missing_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_llama(tmp_path / "tiny.gguf"))
    peak = ["--bandwidth", "1", "--tflops", "1"]
    for arguments, words in (
        ([str(tmp_path / "no.gguf"), *peak], "no.gguf"),
        ([model, *peak, "--report", str(tmp_path / "no.json")], "no.json"),
    ):
        assert main(arguments) == 2
        assert words in capsys.readouterr().err


def test_without_a_report_the_table_is_on_paper(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(write_tiny_llama(tmp_path / "tiny.gguf"))
    assert main([model, "--bandwidth", "1000", "--tflops", "100", "--sequences", "2", "--context", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["decode,", "prompt"]
    values: Any = [float(line.split()[-1].replace(",", "")) for line in lines[2:]]
    assert all(value > 0 for value in values)
