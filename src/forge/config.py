"""The configuration: ``forge.toml`` and flags become one `Config`, and every value knows where it came from.

Each table but `[server]` and `[plugins]` names a component and may have ``options``, whose meaning is the component's
own (`forge.plugins.Registry.options`). Knows no component.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import platformdirs
from attrs import field, frozen
from attrs.validators import ge, min_len, optional

from forge.errors import ConfigError
from forge.strict import REPORTED, Keys, Malformed, Problem, between, nearest, parse, place, structure

AUTO = "auto"
"""A name that means: the best one that can run here."""

NONE = "none"
"""A name that means: no such component at all."""

FILE_NAME = "forge.toml"

MOST = 2**31 - 1
"""No count in a configuration is larger."""


@frozen
class ModelTable:
    """What is served.

    path: a file, a directory, ``pypi:…``, ``hf:…`` or a short name. name: the model family ("auto": by the file's
    architecture). served_name: what clients call it (default: from `path`). max_len: positions a sequence may have
    (default: as many as the model was made for).
    """

    path: str = field(default="smollm2", validator=min_len(1))
    name: str = AUTO
    served_name: str | None = field(default=None, validator=optional(min_len(1)))
    max_len: int | None = field(default=None, validator=optional(between(1, MOST)))
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class BackendTable:
    """Where it is computed. device: which one of several. threads: on a CPU (default: the backend chooses)."""

    name: str = AUTO
    device: int = field(default=0, validator=between(0, MOST))
    threads: int | None = field(default=None, validator=optional(between(1, 4096)))
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class KVCacheTable:
    """Which KV cache. Its size and that of its blocks are options of its own."""

    name: str = "paged"
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class SchedulerTable:
    """What a step holds at most (sequences, prompt tokens), how many sequences may wait, and for how long.

    queue_timeout: seconds that a request may wait for its first step (503), and beyond which one that would have to is
    refused at once (429). request_timeout: seconds from a request's arrival to its answer's end (504). 0: no limit.
    """

    name: str = "continuous"
    max_batch_size: int = field(default=256, validator=between(1, MOST))
    max_prefill_tokens: int = field(default=4096, validator=between(1, MOST))
    max_queue: int = field(default=1024, validator=between(1, MOST))
    queue_timeout: float = field(default=60.0, validator=ge(0))
    request_timeout: float = field(default=0.0, validator=ge(0))
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class SamplerTable:
    """Which sampler."""

    name: str = "default"
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class ConstraintTable:
    """Which kind of grammar constrains answers that ask for it; "none": requests that ask are refused."""

    name: str = "grammar"
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class DrafterTable:
    """Who guesses the next tokens; "none": nobody."""

    name: str = "ngram"
    options: Mapping[str, Any] = field(factory=dict)


@frozen
class ServerTable:
    """The HTTP server.

    port: 0 for any free one. api_key_file: one key a line (default: no key needed). max_body_bytes: longer requests
    get 413. drain_timeout: seconds that running answers have to end in after SIGTERM. watchdog_timeout: seconds after
    which an engine that says nothing is killed and started anew (0: never). request_log: a file for `forge replay`
    (default: none). request_log_redact: what it leaves out, "answers" (digests instead) or "prompts" (both).
    """

    host: str = field(default="127.0.0.1", validator=min_len(1))
    port: int = field(default=8080, validator=between(0, 65535))
    api_key_file: str | None = None
    max_body_bytes: int = field(default=8 << 20, validator=between(1024, MOST))
    drain_timeout: float = field(default=30.0, validator=ge(0))
    watchdog_timeout: float = field(default=120.0, validator=ge(0))
    request_log: str | None = None
    request_log_redact: Literal["nothing", "answers", "prompts"] = "nothing"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


@frozen
class PluginsTable:
    """Which distributions' plugins are loaded: those in `allow` (default: all installed) that aren't in `deny`."""

    allow: tuple[str, ...] | None = None
    deny: tuple[str, ...] = ()


@frozen
class Config:
    """All of it, one table a field."""

    model: ModelTable = field(factory=ModelTable)
    backend: BackendTable = field(factory=BackendTable)
    kv_cache: KVCacheTable = field(factory=KVCacheTable)
    scheduler: SchedulerTable = field(factory=SchedulerTable)
    sampler: SamplerTable = field(factory=SamplerTable)
    constraint: ConstraintTable = field(factory=ConstraintTable)
    drafter: DrafterTable = field(factory=DrafterTable)
    server: ServerTable = field(factory=ServerTable)
    plugins: PluginsTable = field(factory=PluginsTable)


# -------------------------------------------------------------------------------------------------------------- flags


def auto_or_int(text: str) -> int | str:
    """The value of a flag that takes a number or "auto"."""
    return text if text == AUTO else int(text)


@frozen
class Flag:
    """A command-line flag that sets one value.

    parse: from its text, ValueError if that can't be. metavar, summary: for help. short: an abbreviation.
    """

    name: str
    path: Keys
    parse: Callable[[str], Any]
    metavar: str
    summary: str
    short: str | None = None

    @property
    def keyword(self) -> str:
        """Its name as a Python keyword argument."""
        return self.name.removeprefix("--").replace("-", "_")


FLAGS = (
    Flag("--model-path", ("model", "path"), str, "MODEL", "File, directory, pypi:…, hf:… or short name.", short="-m"),
    Flag("--served-model-name", ("model", "served_name"), str, "NAME", "What clients call the model."),
    Flag("--max-model-len", ("model", "max_len"), int, "N", "Positions a sequence may have."),
    Flag("--host", ("server", "host"), str, "ADDRESS", "Address to listen on."),
    Flag("--port", ("server", "port"), int, "N", "Port to listen on."),
    Flag("--api-key-file", ("server", "api_key_file"), str, "FILE", "API keys, one a line."),
    Flag("--log-level", ("server", "log_level"), str, "LEVEL", "debug, info, warning or error."),
    Flag("--backend", ("backend", "name"), str, "NAME", "Backend; auto: the best that can run here."),
    Flag("--device", ("backend", "device"), int, "N", "Which of several devices."),
    Flag("--threads", ("backend", "threads"), int, "N", "Threads of a CPU backend."),
    Flag("--kv-cache", ("kv_cache", "name"), str, "NAME", "KV cache."),
    Flag("--block-size", ("kv_cache", "options", "block_size"), int, "N", "Positions in a block of the KV cache."),
    Flag("--num-blocks", ("kv_cache", "options", "num_blocks"), auto_or_int, "N|auto", "Blocks of the KV cache."),
    Flag("--drafter", ("drafter", "name"), str, "NAME", "Who guesses tokens ahead; none: nobody."),
    Flag("--max-batch-size", ("scheduler", "max_batch_size"), int, "N", "Sequences in one step."),
    Flag("--max-prefill-tokens", ("scheduler", "max_prefill_tokens"), int, "N", "Prompt tokens in one step."),
    Flag("--max-queue", ("scheduler", "max_queue"), int, "N", "Sequences that may wait; more get 429."),
    Flag(
        "--queue-timeout", ("scheduler", "queue_timeout"), float, "SECONDS", "How long a request may wait; 0: forever."
    ),
    Flag("--request-timeout", ("scheduler", "request_timeout"), float, "SECONDS", "For a whole answer; 0: any time."),
    Flag("--request-log", ("server", "request_log"), str, "FILE", "Log requests and answers, for `forge replay`."),
)
"""Every flag that overrides the file."""


# ------------------------------------------------------------------------------------------------------------- loading


Origins = Mapping[Keys, str]
"""Where each value of `to_dict` came from: ``"default"``, ``"forge.toml:12"`` or ``"--port"``."""

DEFAULT = "default"


def load_config(path: Path | None = None, flags: Mapping[str, Any] | None = None) -> tuple[Config, Origins]:
    """The effective configuration: defaults, then the file, then flags (by `Flag.name`; None: not given).

    path: the file. None: ``forge.toml`` in the working directory, else in the user's configuration directory
    (``$XDG_CONFIG_HOME/forge`` on Linux), else none. Errors: `ConfigError` with file or flag, place and reason.
    """
    path = path or _default_file()
    text = "" if path is None else _read(path)
    data = _parse_toml(text, path)
    lines = _LineNumbers(text, path)
    origins = {keys: lines.origin(keys) for keys, _ in _leaves(data)}
    _checked(data, lines.origin)  # before the flags go in: they may hide an error, but not mend it
    for flag in FLAGS:
        value = (flags or {}).get(flag.name)
        if value is not None:
            table = data
            for key in flag.path[:-1]:
                table = table.setdefault(str(key), {})
            table[str(flag.path[-1])] = value
            origins[flag.path] = flag.name
    config = _checked(data, lambda keys: origins.get(keys) or lines.origin(keys))
    return config, {keys: origins.get(keys, DEFAULT) for keys, _ in _leaves(to_dict(config))}


def from_keywords(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Flags given as Python keyword arguments, for `load_config`. Errors: `ConfigError` for one that doesn't exist."""
    names = {flag.keyword: flag.name for flag in FLAGS}
    for keyword in keywords:
        if keyword not in names:
            raise ConfigError(f"{keyword}: there is no such flag, {nearest(keyword, names)}", param=keyword)
    return {names[keyword]: value for keyword, value in keywords.items()}


def to_dict(config: Config) -> dict[str, Any]:
    """As plain data that any codec can carry."""
    return attrs.asdict(config)


def from_dict(data: Mapping[str, Any]) -> Config:
    """Undo `to_dict`. Errors: `ConfigError`."""
    return structure(data, Config, error=ConfigError, root="config")


def _default_file() -> Path | None:
    user = platformdirs.user_config_path("forge", appauthor=False)
    return next((path for path in (Path(FILE_NAME), user / FILE_NAME) if path.is_file()), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: can't be read: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: is not UTF-8 text (byte {exc.start})") from exc


def _parse_toml(text: str, path: Path | None) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except ValueError as exc:  # TOMLDecodeError, which says line and column, or a number that Python can't hold
        raise ConfigError(f"{path}: is not valid TOML: {exc}") from exc


def _checked(data: Mapping[str, Any], origin: Callable[[Keys], str]) -> Config:
    try:
        return parse(data, Config)
    except Malformed as malformed:
        lines = [_complaint(problem, origin(problem.path)) for problem in malformed.problems[:REPORTED]]
        raise ConfigError("; ".join(lines), param=place(malformed.problems[0].path)) from None


def _complaint(problem: Problem, origin: str) -> str:
    where = place(problem.path)
    return f"{origin}: {problem.reason}" if origin.startswith("--") else f"{origin}: {where}: {problem.reason}"


def _leaves(data: Mapping[str, Any], path: Keys = ()) -> Iterator[tuple[Keys, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value


class _LineNumbers:
    """Finds the line that sets a value, which tomllib doesn't tell.

    It tries each line that might be one as a small document of its own, so that quoted and dotted keys are right. A
    value within an inline table or a list has the line of the whole.
    """

    def __init__(self, text: str, path: Path | None) -> None:
        self.file = str(path) if path else DEFAULT
        self.lines: dict[Keys, int] = {}
        table: Keys = ()
        for number, line in enumerate(text.splitlines(), start=1):
            header = line.lstrip().startswith("[")
            keys = self._keys(line) if header else (*table, *self._keys(line.partition("=")[0] + "=0"))
            if header and keys:
                table = keys
            if len(keys) > (0 if header else len(table)):
                self.lines.setdefault(keys, number)

    def origin(self, keys: Keys) -> str:
        """``forge.toml:12``, or the file alone."""
        inside = [number for known, number in self.lines.items() if known[: len(keys)] == keys]
        around = [self.lines[keys[:end]] for end in range(len(keys) - 1, 0, -1) if keys[:end] in self.lines]
        return next((f"{self.file}:{number}" for number in inside + around), self.file)

    @staticmethod
    def _keys(line: str) -> Keys:
        try:
            data: Any = tomllib.loads(line)
        except ValueError:
            return ()
        keys: list[str] = []
        while isinstance(data, dict) and data:
            key, data = next(iter(data.items()))
            keys.append(key)
        return tuple(keys)
