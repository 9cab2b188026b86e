"""A drafter from somebody else's distribution, through its entry point: right, wrong or failing, it changes no text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from forge.testing.server import Server, chat, install_plugin, serve

PLUGIN = '''
"""Drafts that a test asks for by its environment."""
import os
from forge import Component, hookimpl
from forge.interfaces.drafter import Drafter


class Oracle(Drafter):
    """Guesses what it has seen to follow the same text before, as it is or spoilt."""

    def __init__(self):
        self.mode = os.environ["ORACLE"]
        self.seen = {}

    def propose(self, seq, limit):
        tokens = tuple(seq.tokens)
        if self.mode == "raises":
            raise RuntimeError("no guess today")
        if self.mode == "too many":
            return [7] * 10_000
        for known in self.seen.values():
            if known[: len(tokens)] == tokens and len(known) > len(tokens):
                guess = list(known[len(tokens) : len(tokens) + limit])
                return [(t + 1) % 200 for t in guess] if self.mode == "wrong" else guess
        return [3, 4] if self.mode == "wrong" else []

    def observe(self, seq, proposed, accepted):
        if self.mode == "raises later":
            raise RuntimeError("I do not want to know")

    def release(self, seq):
        self.seen[seq.id] = tuple(seq.tokens)
        if self.mode == "raises later":
            raise RuntimeError("I do not let go")

@hookimpl
def forge_drafters():
    return [Component("oracle", factory="forge_oracle:Oracle", summary="guesses of a test")]
'''

ASKS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1, "seed": 5, "top_p": 0.9},
    "scored": {"temperature": 0.7, "seed": 6, "logprobs": True, "top_logprobs": 2},
    "several": {"temperature": 1, "seed": 7, "n": 3, "frequency_penalty": 0.3},
    "stopped": {"temperature": 0, "stop": ["e", "a"]},
}


@contextmanager
def drafting(folder: Path, model: Path, drafter: str, mode: str) -> Iterator[Server]:
    """A server with the plugin installed, and the drafter of this name."""
    (folder / "forge.toml").write_text('[scheduler.options]\ndrafts = "all"\n')  # whatever they cost here
    flags = ("--threads", "1", "--num-blocks", "300", "--drafter", drafter)
    with serve(folder, model, *flags, **install_plugin(folder, "forge_oracle", PLUGIN), ORACLE=mode) as server:
        server.wait()
        yield server


def answers(server: Server) -> tuple[dict[str, list[Any]], int, int]:
    """What is said to every question, and how many tokens were drafted and accepted for it."""
    said, drafted, accepted = {}, 0, 0
    for name, fields in ASKS.items():
        body = chat(max_tokens=40, ignore_eos=True, **fields)
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
        said[name] = [(c["message"]["content"], c["finish_reason"], c["logprobs"]) for c in reply["choices"]]
        details = reply["usage"]["completion_tokens_details"]
        accepted += details["accepted_prediction_tokens"]
        drafted += details["accepted_prediction_tokens"] + details["rejected_prediction_tokens"]
    return said, drafted, accepted


@pytest.fixture(scope="module")
def plain(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The answers without any drafter."""
    with drafting(tmp_path_factory.mktemp("plain"), tiny_path, "none", "right") as server:
        said, drafted, _ = answers(server)
    assert drafted == 0
    return said


@pytest.mark.parametrize("mode", ["right", "wrong", "too many", "raises", "raises later"])
def test_a_third_partys_drafts_change_nothing(
    tmp_path: Path, tiny_path: Path, plain: dict[str, list[Any]], mode: str
) -> None:
    with drafting(tmp_path, tiny_path, "oracle", mode) as server:
        first, drafted, accepted = answers(server)
        again, drafted_again, accepted_again = answers(server)
        assert server.stop() == 0
        log = server.log.read_text()
    assert first == plain
    assert again == plain
    if mode == "right":
        assert accepted_again > accepted + 20, "what was seen before is accepted"
    if mode in ("wrong", "too many"):
        assert drafted_again > 0
        assert accepted + accepted_again < (drafted + drafted_again) / 2
    if mode == "raises":
        assert drafted + drafted_again == 0
    assert ("no guess today" in log) == (mode == "raises"), "a failing drafter is spoken of in the log"
