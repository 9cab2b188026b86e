"""From a configuration to an engine: the only place that calls component factories."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from forge.config import AUTO, DEFAULT, NONE, Config, Origins
from forge.engine.constraining import ConstrainedDrafter, Constraining
from forge.engine.deadlines import TimeLimits
from forge.engine.engine import Engine, Parts
from forge.engine.request import ModelInfo
from forge.errors import ConfigError, ModelFileError, OutOfMemory, PluginError
from forge.interfaces.constraint import Vocabulary
from forge.interfaces.kv_cache import CacheLimits
from forge.interfaces.scheduler import SchedulerLimits
from forge.plugins import KINDS
from forge.strict import Keys
from forge.text.tokenizer import build_tokenizer

if TYPE_CHECKING:
    from forge.interfaces.loader import Checkpoint
    from forge.plugins import Registry
    from forge.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MEMORY_SIGNS = ("outofmemory", "out of memory", "not enough memory", "can't allocate memory")
"""One of these is in every message of torch, on CPUs and GPUs, that memory has run out."""


def create(registry: Registry, kind: str, name: str, table: Mapping[str, Any], *args: Any) -> Any:
    """Make a component: its factory, called with its kind's arguments and, where it has any, its options."""
    options = registry.options(kind, name, table)
    factory = registry.factory(kind, name)
    return factory(*args) if options is None else factory(*args, options=options)


def component_options(config: Config, origins: Origins, registry: Registry) -> dict[str, Any]:
    """By kind, the options of each component that the configuration names; "auto" is left for later.

    Errors: `ConfigError` and `PluginError` that say which line or flag is at fault.
    """
    options: dict[str, Any] = {}
    for kind in (field.name for field in attrs.fields(Config) if field.name in KINDS):
        table = getattr(config, kind)
        if table.name == AUTO and kind in ("model", "backend"):
            continue
        if table.name == NONE and kind in ("constraint", "drafter"):
            if table.options:
                key = min(table.options)
                raise ConfigError(_at(origins, (kind, "options", key), f"{kind}.options.{key}: no {kind} is chosen"))
            continue
        try:
            registry.component(kind, table.name)
        except PluginError as error:
            raise PluginError(_at(origins, (kind, "name"), error.message)) from error
        try:
            options[kind] = registry.options(kind, table.name, table.options)
        except ConfigError as error:
            first = re.match(r"[\w-]*", error.param or "")
            path = (kind, "options", first[0] if first else "")
            raise ConfigError(_at(origins, path, error.message), param=error.param) from error
    return options


def _at(origins: Origins, path: Keys, message: str) -> str:
    """The message with its origin in front. A value that is itself a table has the origin of its first entry."""
    found = next((origin for keys, origin in origins.items() if keys[: len(path)] == path), DEFAULT)
    return message if found == DEFAULT else f"{found}: {message}"


def open_checkpoint(registry: Registry, path: Path) -> Checkpoint:
    """Open a model file or directory with the first loader that accepts it; reads no weights. `ModelFileError`."""
    names = registry.names("loader")
    for name in names:
        loader = create(registry, "loader", name, {})
        if loader.accepts(path):
            checkpoint: Checkpoint = loader.open(path)
            return checkpoint
    raise ModelFileError(f"{path}: no loader knows this format (there are: {', '.join(names)})")


def optional_component(config: Config, registry: Registry, kind: str) -> Any:
    """The drafter or constraint that the configuration names; None for "none"."""
    table = getattr(config, kind)
    return None if table.name == NONE else create(registry, kind, table.name, table.options)


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
    checkpoint = open_checkpoint(registry, model_path)
    tokenizer = build_tokenizer(checkpoint.tokenizer)
    backend_name = registry.choose("backend") if config.backend.name == "auto" else config.backend.name
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
