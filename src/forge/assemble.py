"""From a configuration to an engine."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forge.components import create, open_checkpoint, optional_component
from forge.config import AUTO, Config
from forge.engine.constraining import ConstrainedDrafter, Constraining
from forge.engine.deadlines import TimeLimits
from forge.engine.engine import Engine, Parts
from forge.engine.request import ModelInfo
from forge.errors import ConfigError, OutOfMemory
from forge.interfaces.constraint import Vocabulary
from forge.interfaces.kv_cache import CacheLimits
from forge.interfaces.scheduler import SchedulerLimits
from forge.text.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from forge.plugins import Registry
    from forge.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MEMORY_SIGNS = ("outofmemory", "out of memory", "not enough memory", "can't allocate memory")
"""One of these is in every message of torch, on CPUs and GPUs, that memory has run out."""


def _vocabulary(tokenizer: Tokenizer, eos: tuple[int, ...], size: int) -> Vocabulary:
    """What grammars know of the tokenizer: ids that the model lacks stand for nothing."""
    return Vocabulary(tokenizer.token_bytes[:size], tokenizer.special_ids, eos, size)


def _memory_explained(load: Callable[[Config, Registry, Path], Engine]) -> Callable[[Config, Registry, Path], Engine]:
    """Turn what allocators raise, each in its own way, into `OutOfMemory` with what can be done."""

    @wraps(load)
    def explained(config: Config, registry: Registry, model_path: Path) -> Engine:
        try:
            return load(config, registry, model_path)
        except (MemoryError, RuntimeError) as error:  # torch has no class of its own for memory of the host
            words = f"{type(error).__name__} {error}".lower()
            if not isinstance(error, MemoryError) and not any(sign in words for sign in MEMORY_SIGNS):
                raise
            first = str(error).partition("\n")[0] or type(error).__name__
            raise OutOfMemory(
                f"there isn't enough memory for this model and its KV cache ({first}); a smaller "
                "kv_cache.options.num_blocks or memory_fraction, or a smaller model, may fit"
            ) from error

    return explained


@_memory_explained
def build(config: Config, registry: Registry, model_path: Path) -> Engine:
    """Load the model and put the engine together. Any `ForgeError` of configuration, plugins, model files or memory."""
    started = time.monotonic()
    with ThreadPoolExecutor(1) as beside:  # probes run in processes of their own: meanwhile the file is read
        chosen = beside.submit(registry.choose, "backend") if config.backend.name == AUTO else None
        checkpoint = open_checkpoint(registry, model_path)
        tokenizer = build_tokenizer(checkpoint.tokenizer, prepared=False)
        backend_name = config.backend.name if chosen is None else chosen.result()
    backend = create(
        registry, "backend", backend_name, config.backend.options, config.backend.device, config.backend.threads
    )
    model_name = checkpoint.architecture if config.model.name == "auto" else config.model.name
    model = create(registry, "model", model_name, config.model.options, checkpoint, backend)
    if model_name != checkpoint.architecture:
        log.warning("model.name: %r is used for a file that calls itself %r", model_name, checkpoint.architecture)
    max_model_len = config.model.max_len or model.context_length
    if max_model_len > model.context_length:
        raise ConfigError(
            f"model.max_len: {max_model_len} is more than the {model.context_length} positions the model was made for"
        )
    layers = model.kv_spec()
    free, _ = backend.memory()
    options = registry.options("kv_cache", config.kv_cache.name, config.kv_cache.options)
    cache_class: Any = registry.factory("kv_cache", config.kv_cache.name)
    shape = cache_class.plan(
        CacheLimits(
            free_bytes=free,
            bytes_per_token=sum(backend.kv_bytes(layer) for layer in layers),
            max_model_len=max_model_len,
            max_batch_size=config.scheduler.max_batch_size,
        ),
        options,
    )
    kv = create(registry, "kv_cache", config.kv_cache.name, config.kv_cache.options, shape)
    pages = tuple(backend.kv_pages(layer, shape.num_blocks, shape.block_size) for layer in layers)
    limits = SchedulerLimits(
        max_batch_size=config.scheduler.max_batch_size,
        max_prefill_tokens=config.scheduler.max_prefill_tokens,
        max_model_len=max_model_len,
        max_queue=config.scheduler.max_queue,
        queue_timeout=config.scheduler.queue_timeout,
    )
    cost = backend.cost()
    eos = tuple(
        token
        for token in dict.fromkeys((*checkpoint.generation.eos_token_ids, *tokenizer.eos_token_ids))
        if token < model.vocab_size
    )
    drafter = optional_component(config, registry, "drafter")
    constraint = optional_component(config, registry, "constraint")
    if constraint is not None:
        drafter = ConstrainedDrafter(drafter, tokenizer)
    parts = Parts(
        backend=backend,
        model=model,
        pages=pages,
        kv=kv,
        scheduler=create(registry, "scheduler", config.scheduler.name, config.scheduler.options, kv, limits, cost),
        sampler=create(registry, "sampler", config.sampler.name, config.sampler.options, backend),
        drafter=drafter,
        tokenizer=tokenizer,
        cost=cost,
        time_limits=TimeLimits(config.scheduler.queue_timeout, config.scheduler.request_timeout),
        constraining=Constraining(constraint, _vocabulary(tokenizer, eos, model.vocab_size)),
        eos=eos,
        info=ModelInfo(
            architecture=checkpoint.architecture,
            backend=backend_name,
            max_model_len=min(max_model_len, kv.max_sequence_len),
            vocab_size=model.vocab_size,
            num_blocks=shape.num_blocks,
            block_size=shape.block_size,
            load_seconds=time.monotonic() - started,
        ),
    )
    log.info(
        "%s on backend %s, loaded in %.1f s; KV cache %s: %d blocks of %d positions; sequences up to %d tokens",
        checkpoint.architecture, backend_name, parts.info.load_seconds, config.kv_cache.name,
        shape.num_blocks, shape.block_size, parts.info.max_model_len,
    )  # fmt: skip
    return Engine(parts)
