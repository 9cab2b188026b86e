"""`forge replay`: submit logged requests to an engine in this process, and compare the tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

from attrs import evolve, frozen

from forge.engine.request import Request
from forge.llm import LLM
from forge.server.request_log import LoggedAnswer, LoggedRequest, digest


@frozen
class Comparison:
    """What became of one logged request. outcome: "same", "different", or "skipped"; detail: where, or why."""

    request_id: str
    outcome: str
    detail: str = ""


def replay(llm: LLM, log: Iterable[LoggedRequest], at_once: int) -> Iterator[Comparison]:
    """Run the requests, `at_once` of them together, and compare as they end. Whatever else runs must not matter."""
    entries = iter(log)
    while group := list(islice(entries, at_once)):
        reasons = {entry.request.id: _unusable(entry) for entry in group}
        usable = [entry for entry in group if reasons[entry.request.id] is None]
        outputs = dict(zip((e.request.id for e in usable), llm.run([_again(e.request) for e in usable])))
        for entry in group:
            request_id = entry.request.id
            reason = reasons[request_id]
            if reason is not None:
                yield Comparison(request_id, "skipped", reason)
                continue
            found = [choice.token_ids for choice in outputs[request_id].choices]
            differences = [
                f"choice {number}: {difference}"
                for number, (logged, ids) in enumerate(zip(entry.answers, found))
                if (difference := _difference(logged, ids, entry.complete))
            ]
            yield Comparison(request_id, "different" if differences else "same", "; ".join(differences))


def _again(request: Request) -> Request:
    """The request under a new id: the log of a server that was restarted may have one twice."""
    return evolve(request, id=f"replay-{id(request)}-{request.id}")


def _unusable(entry: LoggedRequest) -> str | None:
    if entry.redacted == "prompts":
        return "its prompt was not logged"
    if not entry.complete and any(answer.token_ids is None for answer in entry.answers):
        return "it was cut short, and its tokens were not logged"
    return None


def _difference(logged: LoggedAnswer, found: list[int], complete: bool) -> str | None:
    """Where the tokens differ; of an answer that was cut short, only as many as there are count."""
    if logged.token_ids is None:
        return None if digest(found) == logged.digest else f"{logged.tokens} tokens logged, others came"
    expected = logged.token_ids
    for position, (one, other) in enumerate(zip(expected, found)):
        if one != other:
            return f"token {position} was {one} and is {other}"
    if len(expected) > len(found) or (complete and len(expected) < len(found)):
        return f"{len(expected)} tokens were logged, {len(found)} came"
    return None
