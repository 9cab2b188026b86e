"""What Prometheus scrapes at ``GET /metrics``: names as vLLM's after the prefix ``forge:``, so that dashboards fit.

Latencies are taken where deltas come from the engine, so that a slow reader doesn't look like a slow engine.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING

from attrs import define, field
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.utils import floatToGoString

from forge.engine.request import Delta, Report, Request
from forge.errors import ForgeError

if TYPE_CHECKING:
    from forge.engine.supervisor import EngineClient

FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5)
WHOLE = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKENS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000)

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4


@define(eq=False)
class _Watched:
    """A request that is being answered. last: when each of its choices said something."""

    arrival: float
    last: dict[int, float] = field(factory=dict)


class _Gaps:
    """A histogram that is told of every token: counting takes a tenth of the library's time, which adds up."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, seconds: float, tokens: int) -> None:
        """So many tokens came after so many seconds, together."""
        self._counts[bisect_left(self._bounds, seconds / tokens)] += tokens
        self._sum += seconds

    def family(self, name: str, text: str) -> HistogramMetricFamily:
        """As Prometheus reads it."""
        bounds = (*map(floatToGoString, self._bounds), "+Inf")
        return HistogramMetricFamily(name, text, list(zip(bounds, accumulate(self._counts))), self._sum)


class Metrics:
    """An observer of requests (`forge.engine.supervisor.Observer`) and what it has seen, for Prometheus."""

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._report: Report | None = None
        self._watched: dict[str, _Watched] = {}
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"forge:{name}", text, buckets=buckets, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"forge:{name}", text, labels, registry=registry)

        self._ttft = histogram("time_to_first_token_seconds", "From acceptance to the first token.", FIRST_TOKEN)
        self._itl = _Gaps(BETWEEN_TOKENS)
        self._e2e = histogram("e2e_request_latency_seconds", "From acceptance to the end of all answers.", WHOLE)
        self._queue = histogram("request_queue_time_seconds", "From arrival to the first step.", WHOLE)
        self._prompt = histogram("request_prompt_tokens", "Tokens of the prompt.", TOKENS)
        self._answer = histogram("request_generation_tokens", "Tokens of an answer.", TOKENS)
        self._prompts = counter("prompt_tokens", "Prompt tokens of finished answers.")
        self._tokens = counter("generation_tokens", "Generated tokens of finished answers.")
        self._success = counter("request_success", "Answers by how they ended.", "finished_reason")
        self._errors = counter("request_errors", "Requests that were refused or ended early, by code.", "code")
        self._misses = counter("prefix_cache_misses", "Prompts found in part or not at all, by reason.", "reason")
        registry.register(self)

    # -- the observer

    def accepted(self, request: Request) -> None:
        """The engine has taken a request."""
        self._watched[request.id] = _Watched(time.monotonic())

    def refused(self, request: Request, error: ForgeError) -> None:
        """The engine hasn't."""
        self._errors.labels(error.code).inc()

    def gained(self, request: Request, delta: Delta) -> None:
        """An answer's delta has come."""
        watched = self._watched.get(request.id)
        if watched is None:
            return
        now = time.monotonic()
        before = watched.last.get(delta.choice)
        if delta.token_ids:
            watched.last[delta.choice] = now
            if before is None:
                self._ttft.observe(now - watched.arrival)
            else:
                self._itl.observe(now - before, len(delta.token_ids))
        if delta.usage is not None and delta.finish_reason is not None:
            self._success.labels(delta.finish_reason).inc()
            if delta.error is not None:
                self._errors.labels(delta.error.code).inc()
            self._count(request, delta)

    def _count(self, request: Request, delta: Delta) -> None:
        usage = delta.usage
        assert usage is not None
        self._queue.observe(usage.queue_seconds)
        self._answer.observe(usage.completion_tokens)
        self._tokens.inc(usage.completion_tokens)
        if delta.choice == 0:
            self._prompt.observe(usage.prompt_tokens)
            self._prompts.inc(usage.prompt_tokens)
            if usage.cache_miss is not None:
                self._misses.labels(usage.cache_miss.reason).inc()

    def over(self, request: Request, error: ForgeError | None) -> None:
        """All answers have ended."""
        watched = self._watched.pop(request.id, None)
        if watched is None:
            return
        if error is None:
            self._e2e.observe(time.monotonic() - watched.arrival)
        else:
            self._errors.labels("aborted" if error.code == ForgeError.code else error.code).inc()

    # -- the scrape

    async def text(self) -> bytes:
        """All figures in Prometheus' text format; the engine is asked for its own."""
        self._report = await self._client.report()
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """The engine's own figures, for the registry."""
        yield self._itl.family("forge:inter_token_latency_seconds", "Between the tokens of an answer.")
        yield GaugeMetricFamily("forge:engine_up", "Whether the engine takes requests.", self._client.state == "ready")
        yield CounterMetricFamily("forge:engine_restarts", "How often it died and was started.", self._client.restarts)
        if (info := self._client.info) is not None:
            shape = GaugeMetricFamily(
                "forge:cache_config_info", "The KV cache's shape.", None, ("block_size", "num_blocks")
            )
            shape.add_metric((str(info.block_size), str(info.num_blocks)), 1)
            yield shape
        report = self._report
        if report is None:
            return
        blocks = report.used_blocks + report.cached_blocks + report.free_blocks
        for name, text, value in (
            ("num_requests_running", "Sequences that hold blocks.", report.running),
            ("num_requests_waiting", "Sequences that wait for their first step, or again.", report.waiting),
            ("kv_cache_usage_perc", "Share of blocks in use; 1 is full.", report.used_blocks / blocks),
            (
                "kv_cache_reusable_perc",
                "Share of blocks that only wait to be reused.",
                report.cached_blocks / blocks,
            ),
        ):
            yield GaugeMetricFamily(f"forge:{name}", text, value)
        for name, text, count in (
            ("prefix_cache_queries", "Prompt tokens looked up in the KV cache.", report.queries),
            ("prefix_cache_hits", "Prompt tokens found there.", report.hits),
            ("num_preemptions", "How often a sequence lost its place.", report.preemptions),
            ("engine_steps", "Steps computed.", report.steps),
            ("spec_decode_num_draft_tokens", "Draft tokens checked.", report.drafted),
            ("spec_decode_num_accepted_tokens", "Draft tokens that were right.", report.accepted),
        ):
            yield CounterMetricFamily(f"forge:{name}", text, count)
