"""A benchmark from start to end: find the model, calibrate prompts, offer the load, stage by stage."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import attrs
import msgspec
from attrs import frozen

from forge.bench.http import Address, BrokenResponse, Response, Server
from forge.bench.load import Send, Time, closed_loop, open_loop, poisson_arrivals
from forge.bench.prompts import Count, Length, PromptMaker, fit, make_prompts, tokenizer_of
from forge.bench.record import Outcome, Recorder
from forge.bench.settings import BenchError, Settings, Stage
from forge.bench.stats import StageResult, aggregate

REAL_TIME = Time(time.perf_counter, asyncio.sleep)

REASON_BYTES = 300


@frozen
class Client:
    """Sends the requests that some settings describe. Get one by `connect`."""

    settings: Settings
    server: Server
    model: str
    length: Length
    prefix: str
    count: Count
    maker: PromptMaker
    time: Time

    @classmethod
    async def connect(cls, settings: Settings, time: Time = REAL_TIME) -> Client:
        """Ask the server what it serves and how it counts tokens. Errors: `BenchError`, `ConfigError`."""
        server = Server(Address.parse(settings.url), settings.api_key)
        model = settings.model or await _first_model(server)
        maker = PromptMaker(settings.seed)
        count = tokenizer_of(server, model)
        probe = " ".join(maker.words(settings.prompt_tokens))
        own = await count(probe)
        bare = cls(settings, server, model, Length(settings.prompt_tokens, 0), "", count, maker, time)
        outcome = await bare.send(0, time.now(), bare.body(probe, 1))
        if outcome.failure is not None or outcome.prompt_tokens is None:
            reason = outcome.failure.message if outcome.failure else "no usage"
            raise BenchError(f"{settings.url} doesn't answer a first request: {reason}")
        length = Length(
            settings.prompt_tokens, outcome.prompt_tokens - (settings.prompt_tokens if own is None else own)
        )
        prefix = ""
        if settings.shared_prefix:
            prefix = await fit(maker.words(settings.shared_prefix), settings.shared_prefix, count, maker)
        return cls(settings, server, model, length, prefix, count, maker, time)

    async def prompts(self, number: int) -> list[str]:
        """New prompts, not like any before."""
        return await make_prompts(self.maker, self.length, self.prefix, number, self.count)

    def body(self, prompt: str, output_tokens: int) -> bytes:
        """A request's body."""
        chat = self.settings.endpoint == "chat"
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": prompt}]} if chat else {"prompt": prompt}
        return msgspec.json.encode(
            asked
            | {
                "model": self.model,
                "max_tokens": output_tokens,
                "temperature": self.settings.temperature,
                "ignore_eos": self.settings.ignore_eos,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        )

    async def send(self, index: int, due: float, body: bytes, wanted: int = 1) -> Outcome:
        """Send a request that asks for `wanted` tokens; whatever the server does becomes an outcome."""
        recorder, settings = Recorder(), self.settings
        path = "/v1/chat/completions" if settings.endpoint == "chat" else "/v1/completions"
        try:
            async with asyncio.timeout(settings.timeout), self.server.request("POST", path, body) as response:
                await self._follow(response, recorder)
        except TimeoutError:
            recorder.fail("timeout", f"no end after {settings.timeout:g} s")
        except BrokenResponse as error:
            recorder.fail("broken stream", str(error))
        except OSError as error:
            recorder.fail("connection", str(error))
        return recorder.outcome(index, due, self.time.now(), wanted, exactly=settings.ignore_eos)

    async def _follow(self, response: Response, recorder: Recorder) -> None:
        if response.status != 200:
            reason = (await response.read())[:REASON_BYTES].decode(errors="replace")
            recorder.fail("status", f"{response.status}: {reason}")
            return

        def take(piece: bytes) -> bool:
            recorder.feed(piece, self.time.now())
            return not recorder.finished

        await response.deliver(take)

    async def stage(self, stage: Stage) -> StageResult:
        """Warm up, then measure."""
        tokens = self.settings.output_tokens
        bodies = [self.body(prompt, tokens) for prompt in await self.prompts(stage.warmup + stage.requests)]

        def sender(first: int) -> Send:
            return lambda index, due: self.send(index, due, bodies[first + index], tokens)

        if stage.warmup:
            await closed_loop(stage.concurrency or stage.warmup, stage.warmup, sender(0), self.time)
        measured = sender(stage.warmup)
        begin = self.time.now()
        if stage.rate is None:
            outcomes = await closed_loop(stage.concurrency or 1, stage.requests, measured, self.time)
        else:
            arrivals = poisson_arrivals(stage.rate, stage.requests, self.settings.seed)
            outcomes = await open_loop(arrivals, measured, self.time)
        return aggregate(stage, [_since(begin, outcome) for outcome in outcomes], self.settings.slo)


def _since(begin: float, outcome: Outcome) -> Outcome:
    return attrs.evolve(outcome, start=outcome.start - begin, end=outcome.end - begin)


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def _first_model(server: Server) -> str:
    answer = await server.lookup("GET", "/v1/models")
    try:
        return msgspec.convert(answer, _Models).data[0].id
    except (msgspec.ValidationError, IndexError) as error:
        raise BenchError(f"{server.address.authority} names no model at /v1/models; name one with --model") from error
