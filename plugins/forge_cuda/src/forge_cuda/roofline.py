"""What a GPU could do at most with a model, and how near a benchmark came: ``python -m forge_cuda.roofline MODEL``.

Decoding is bound by memory: each step reads all weights once and the cache of every sequence. Prompts are bound by the
tensor cores. (Williams, Waterman, Patterson, "Roofline", 2009, https://doi.org/10.1145/1498765.1498785)
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen

from forge import plugins
from forge.errors import ConfigError, ForgeError
from forge.interfaces.backend import Backend, Prepared, Use
from forge.interfaces.loader import Checkpoint, Weight
from forge_cuda.driver import Device, DriverError, devices
from forge_cuda.machine import dotted
from forge_cuda.pages import FORMATS, bytes_per_position

OPERATIONS = {
    (8, 0): 2048, (8, 6): 1024, (8, 7): 1024, (8, 9): 1024, (9, 0): 4096, (10, 0): 8192, (10, 3): 8192,
    (12, 0): 1024, (12, 1): 1024,
}  # fmt: skip
"""Operations a clock of a multiprocessor's tensor cores on bfloat16, summed in float32 and without sparsity, by compute
capability: what NVIDIA's architecture white papers say, divided by multiprocessors and clock. GeForce cards have half.
"""

DECODE_TOKENS = 2
"""Answers of fewer tokens say nothing about decoding."""


@frozen
class Peak:
    """What a device can do. bandwidth: bytes a second. operations: of bfloat16 tensor cores, a second."""

    name: str
    bandwidth: float
    operations: float


@frozen
class Burden:
    """What a model asks for. weight_bytes: that each step reads. products: multiplications with weights a token.

    kv_bytes: that a position takes in the cache. attention: multiplications a token and position that it attends to.
    """

    weight_bytes: int
    products: int
    kv_bytes: int
    attention: int

    def decode(self, peak: Peak, sequences: int, context: int) -> float:
        """Tokens a second at most, of all sequences together, at so many positions each."""
        return sequences * peak.bandwidth / (self.weight_bytes + sequences * context * self.kv_bytes)

    def prompt(self, peak: Peak, tokens: int) -> float:
        """Tokens a second at most of a prompt of this length."""
        return peak.operations / 2 / (self.products + self.attention * tokens / 2)


class Scales(Backend):
    """A backend that weighs what it's given instead of loading it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_bytes = self.products = 0

    def prepare(self, parts: Sequence[Weight], uses: Collection[Use]) -> Prepared:
        handle = _Weighed()
        handle.in_features = parts[0].shape[1]
        handle.out_features = sum(part.shape[0] for part in parts)
        handle.nbytes = sum(part.nbytes for part in parts)
        if "linear" in uses:
            self.weight_bytes += handle.nbytes
            self.products += handle.in_features * handle.out_features
        return handle

    def vector(self, parts: Sequence[Weight]) -> torch.Tensor:
        return torch.zeros(sum(part.shape[0] for part in parts))


class _Weighed(Prepared):
    def rows(self, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError("these weights were only weighed")


def weigh(checkpoint: Checkpoint, registry: plugins.Registry, kv_format: str = "bf16") -> Burden:
    """What a checkpoint's model asks for; reads no weights. Errors: as for a model that is loaded."""
    scales = Scales()
    name = checkpoint.architecture
    options = registry.options("model", name, {})
    factory: Any = registry.factory("model", name)
    model = factory(checkpoint, scales) if options is None else factory(checkpoint, scales, options=options)
    stack = model.stack()
    specs = () if stack is None else stack.specs
    return Burden(
        weight_bytes=scales.weight_bytes,
        products=scales.products,
        kv_bytes=sum(bytes_per_position(layer, FORMATS[kv_format]) for layer in model.kv_spec()),
        attention=sum(spec.attention.heads * (spec.attention.k_dim + spec.attention.v_dim) for spec in specs),
    )


def peak_of(device: Device, bandwidth: float | None = None, operations: float | None = None) -> Peak:
    """What a device can do by its clocks, unless it's said. Errors: `ConfigError` for a device that isn't known."""
    if operations is None:
        each = OPERATIONS.get(device.capability)
        if each is None:
            raise ConfigError(f"{device.name} (compute capability {dotted(device.capability)}): say --tflops")
        each = each // 2 if "GeForce" in device.name and device.capability >= (8, 6) else each
        operations = each * device.multiprocessors * device.clock
    return Peak(device.name, device.bandwidth if bandwidth is None else bandwidth, operations)


def on_paper(burden: Burden, peak: Peak, sequences: Sequence[int], context: int, prompt: int) -> Iterator[str]:
    """Lines of what could be reached."""
    yield f"{'':24}{'at most, tok/s':>16}"
    for count in sequences:
        yield f"{f'decode, {count} at {context}':24}{burden.decode(peak, count, context):16,.0f}"
    yield f"{f'prompt of {prompt}':24}{burden.prompt(peak, prompt):16,.0f}"


def beside(burden: Burden, peak: Peak, report: Mapping[str, Any]) -> Iterator[str]:
    """Lines for a report of ``forge bench --json``: each figure, the roofline, and the share of it that was reached."""
    asked = report["settings"]
    prompt, answer = asked["prompt_tokens"], asked["output_tokens"]
    context = prompt + answer // 2
    yield f"{'':24}{'measured, tok/s':>16}{'at most':>10}{'share':>8}"

    def line(title: str, measured: float, most: float, of: str) -> str:
        return f"{title:24}{measured:16,.1f}{most:10,.0f}{measured / most:8.0%} of {of}"

    for stage in report["stages"]:
        streams = stage["stage"]["concurrency"]
        if streams is None:
            yield "(stages with a rate of arrivals have no fixed number of sequences: no roofline)"
            continue
        if answer >= DECODE_TOKENS and stage["itl"] is not None and stage["itl"]["median"] > 0:
            most = burden.decode(peak, streams, context)
            yield line(f"decode, {streams} at {context}", streams / stage["itl"]["median"], most, "bandwidth")
        if streams == 1 and stage["ttft"] is not None:
            measured = prompt / stage["ttft"]["median"]
            yield line(f"prompt of {prompt}", measured, burden.prompt(peak, prompt), "peak")


def _open(registry: plugins.Registry, reference: str) -> Checkpoint:
    from forge.errors import ModelFileError
    from forge.models import resolve

    path = resolve(reference, registry)
    for name in registry.names("loader"):
        loader: Any = registry.factory("loader", name)
        opened = loader()
        if opened.accepts(path):
            checkpoint: Checkpoint = opened.open(path)
            return checkpoint
    raise ModelFileError(f"{path}: no loader knows this format")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 2 if something is missing."""
    parser = argparse.ArgumentParser(prog="python -m forge_cuda.roofline", description=__doc__)
    parser.add_argument("model", help="a file, a directory, or a name that forge run takes")
    parser.add_argument("--device", type=int, default=0, help="which GPU")
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of its memory, instead of what its clocks say")
    parser.add_argument("--tflops", type=float, help="of its bfloat16 tensor cores, dense, instead of what clocks say")
    parser.add_argument("--kv-format", choices=sorted(FORMATS), default="bf16", help="of the KV cache")
    parser.add_argument("--context", type=int, default=1024, help="positions of each sequence")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64], help="decoded at a time")
    parser.add_argument("--prompt", type=int, default=8000, help="tokens of a prompt")
    parser.add_argument("--report", type=Path, help="what forge bench --json wrote: shares of the roofline")
    asked = parser.parse_args(arguments)
    try:
        peak = _asked_peak(asked)
        registry = plugins.load()
        burden = weigh(_open(registry, asked.model), registry, asked.kv_format)
        lines = (
            on_paper(burden, peak, asked.sequences, asked.context, asked.prompt)
            if asked.report is None
            else beside(burden, peak, json.loads(asked.report.read_text(encoding="utf-8")))
        )
        print(
            f"{asked.model} on {peak.name}: {peak.bandwidth / 1e9:,.0f} GB/s, {peak.operations / 1e12:,.0f} TFLOP/s;"
            f" {burden.weight_bytes / 1e9:.2f} GB of weights a step, {burden.products / 1e9:.2f} G products a token,"
            f" {burden.kv_bytes / 1024:.0f} KiB of cache a position"
        )
        for line in lines:
            print(line)
    except (ForgeError, DriverError, OSError, json.JSONDecodeError) as error:
        print(getattr(error, "message", str(error)), file=sys.stderr)
        return 2
    return 0


def _asked_peak(asked: argparse.Namespace) -> Peak:
    bandwidth = None if asked.bandwidth is None else 1e9 * asked.bandwidth
    operations = None if asked.tflops is None else 1e12 * asked.tflops
    if bandwidth is not None and operations is not None:
        return Peak("a device as said", bandwidth, operations)
    found = devices()
    if not 0 <= asked.device < len(found):
        raise ConfigError(f"--device: there are {len(found)} GPUs; say --bandwidth and --tflops for another one")
    return peak_of(found[asked.device], bandwidth, operations)


if __name__ == "__main__":
    sys.exit(main())
