"""What integration tests share: a tiny model with random weights, and engines built from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from forge_kv_paged.naive import NaiveKVCache
from forge_kv_paged.paged import PagedKVCache

from forge import assemble, plugins
from forge.builtin.sampler import DefaultSampler
from forge.builtin.scheduler import ContinuousScheduler
from forge.config import load_config
from forge.engine.engine import Engine
from forge.engine.request import Delta, Request
from forge.interfaces.kv_cache import CacheShape
from forge.interfaces.scheduler import SchedulerLimits
from forge.testing.models import write_tiny_llama


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of some 400 kB."""
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


def build(path: Path, **flags: Any) -> Engine:
    """An engine with the plain torch backend in float32, as `forge run` would build it."""
    flags = {"backend": "torch", "threads": 1, "model_path": str(path), **flags}
    config, _ = load_config(None, {f"--{name.replace('_', '-')}": value for name, value in flags.items()})
    return assemble.build(config, plugins.load(), path)


@pytest.fixture(scope="session")
def tiny_engine(tiny_path: Path) -> Iterator[Engine]:
    engine = build(tiny_path, num_blocks=400)
    yield engine
    engine.check()


@pytest.fixture(scope="session")
def smollm2_engine(smollm2_path: Path) -> Iterator[Engine]:
    engine = build(smollm2_path, num_blocks=600)
    yield engine
    engine.check()


@pytest.fixture(scope="session")
def refit() -> Callable[..., Engine]:
    """A function that gives a loaded model a new cache and scheduler, so that one load serves many set-ups."""

    def make(
        engine: Engine, *, num_blocks: int = 400, block_size: int = 16, naive: bool = False, drafter: Any = None,
        backend: Any = None, **limits: int,
    ) -> Engine:  # fmt: skip
        parts = engine.parts
        shape = CacheShape(num_blocks, block_size)
        kv = NaiveKVCache(shape) if naive else PagedKVCache(shape)
        backend = backend or parts.backend
        pages = tuple(backend.kv_pages(layer, num_blocks, block_size) for layer in parts.model.kv_spec())
        bounds = {"max_batch_size": 256, "max_prefill_tokens": 4096, "max_model_len": 512, "max_queue": 1024, **limits}
        return Engine(
            evolve(
                parts,
                backend=backend,
                pages=pages,
                kv=kv,
                scheduler=ContinuousScheduler(kv, SchedulerLimits(**bounds)),
                sampler=DefaultSampler(backend),
                drafter=drafter,
                info=evolve(parts.info, max_model_len=min(bounds["max_model_len"], kv.max_sequence_len)),
            )
        )

    return make


class Answers:
    """All deltas of some requests, by request and choice."""

    def __init__(self, deltas: list[Delta]) -> None:
        self.deltas = deltas

    def of(self, request_id: str, choice: int = 0) -> list[Delta]:
        return [d for d in self.deltas if (d.request_id, d.choice) == (request_id, choice)]

    def tokens(self, request_id: str, choice: int = 0) -> list[int]:
        return [token for delta in self.of(request_id, choice) for token in delta.token_ids]

    def text(self, request_id: str, choice: int = 0) -> str:
        return "".join(delta.text for delta in self.of(request_id, choice))

    def last(self, request_id: str, choice: int = 0) -> Delta:
        return self.of(request_id, choice)[-1]


@pytest.fixture(scope="session")
def run() -> Callable[..., Answers]:
    """A function that submits requests together and steps the engine until it's idle, with its books checked."""

    def go(engine: Engine, *requests: Request, steps: int = 5000) -> Answers:
        for request in requests:
            engine.submit(request)
        deltas: list[Delta] = []
        for _ in range(steps):
            if engine.idle:
                break
            deltas += engine.step()
            engine.parts.kv.check()
        assert engine.idle, "the engine still has work"
        engine.check()
        return Answers(deltas)

    return go
