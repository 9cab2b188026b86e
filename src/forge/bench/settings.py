"""What a benchmark is asked to do, checked once. Knows no network."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Literal

from attrs import field, frozen
from attrs.validators import deep_iterable, ge, gt, in_, min_len, optional

from forge.errors import ConfigError, ForgeError

Endpoint = Literal["chat", "completions"]

SLO_METRICS = ("ttft", "tpot", "e2e")
"""What a limit for goodput can be about: all are one figure a request."""


class BenchError(ForgeError):
    """The benchmark can't be run: no server, a server that doesn't answer as it should, a library that is missing."""

    code = "bench_error"


@frozen(kw_only=True)
class Settings:
    """One benchmark of one server.

    model: default, the first that the server lists. prompt_tokens: the whole prompt's, the chat template's included.
    shared_prefix: how many of them all prompts begin with. requests: a stage (default: twice its concurrency, 32 in an
    open loop). warmup: unmeasured requests before each stage (default: its concurrency, 4 in an open loop).
    concurrency: one closed-loop stage each. rate: requests per second; one open-loop stage each, and then no closed
    loop. slo: limits in seconds for goodput. timeout: seconds for one request. api_key: never reported.
    """

    url: str
    model: str | None = None
    endpoint: Endpoint = field(default="chat", validator=in_(("chat", "completions")))
    api_key: str | None = field(default=None, repr=False)
    prompt_tokens: int = field(default=158, validator=ge(1))
    output_tokens: int = field(default=64, validator=ge(1))
    shared_prefix: int = field(default=0, validator=ge(0))
    temperature: float = field(default=0.0, validator=ge(0))
    ignore_eos: bool = True
    concurrency: tuple[int, ...] = field(
        default=(1, 4, 16), validator=[min_len(1), deep_iterable(member_validator=ge(1))]
    )
    rate: tuple[float, ...] = field(default=(), validator=deep_iterable(member_validator=gt(0)))
    requests: int | None = field(default=None, validator=optional(ge(1)))
    warmup: int | None = field(default=None, validator=optional(ge(0)))
    slo: Mapping[str, float] = field(factory=dict)
    timeout: float = field(default=600.0, validator=gt(0))
    seed: int = field(factory=lambda: secrets.randbits(32))

    def __attrs_post_init__(self) -> None:
        if self.shared_prefix >= self.prompt_tokens:
            raise ConfigError(
                f"a shared prefix of {self.shared_prefix} tokens leaves nothing of a prompt of {self.prompt_tokens}"
            )

    def stages(self) -> tuple[Stage, ...]:
        """What is measured, in order."""
        if self.rate:
            count = self.requests or 32
            return tuple(Stage(None, rate, count, 4 if self.warmup is None else self.warmup) for rate in self.rate)
        return tuple(
            Stage(streams, None, self.requests or 2 * streams, streams if self.warmup is None else self.warmup)
            for streams in self.concurrency
        )


@frozen
class Stage:
    """`requests` requests after `warmup` unmeasured ones, offered in a closed loop or at a rate (per second)."""

    concurrency: int | None
    rate: float | None
    requests: int
    warmup: int


def parse_slo(text: str) -> tuple[str, float]:
    """``ttft:0.5`` → (metric, seconds). Errors: `ConfigError`."""
    metric, _, limit = text.partition(":")
    if metric not in SLO_METRICS:
        raise ConfigError(f"--slo {text}: {metric!r} is not one of {', '.join(SLO_METRICS)}")
    try:
        seconds = float(limit)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"--slo {text}: expected {metric}:SECONDS with a positive number of seconds")
    return metric, seconds
