"""The comparison script's arithmetic and commands: nobody's advantage may be the wrong way round."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("compare")
    for name in ("compare", "servers"):
        del sys.modules[name]


def turns(compare: Any, name: str, figure: str, values: list[float]) -> list[Any]:
    return [compare.Turn(name, number, [], {figure: value}, []) for number, value in enumerate(values)]


@pytest.mark.parametrize(
    ("figure", "better", "worse"),
    [
        ("4 streams: tok/s", 200.0, 100.0),
        ("4 streams: TTFT p50, ms", 10.0, 20.0),
        ("4 streams: ITL p99, ms", 10.0, 20.0),
        ("TTFT of 1000 tokens, ms", 10.0, 20.0),
        ("start-up, s", 1.0, 2.0),
        ("memory (resident), MB", 300.0, 600.0),
    ],
)
def test_an_advantage_above_one_means_that_forge_is_better(
    compare: Any, figure: str, better: float, worse: float
) -> None:
    ahead, behind = turns(compare, "forge", figure, [better]), turns(compare, "peer", figure, [worse])
    assert compare.advantages(ahead, behind, figure) == [2.0]
    assert compare.advantages(behind, ahead, figure) == [0.5]


def test_ratios_are_of_the_same_round_and_shown_with_their_spread(compare: Any) -> None:
    figure = "1 stream: tok/s"
    ours, theirs = (
        turns(compare, "forge", figure, [10.0, 40.0, 90.0]),
        turns(compare, "peer", figure, [10.0, 20.0, 30.0]),
    )
    assert compare.advantages(ours, theirs, figure) == [1.0, 2.0, 3.0]
    first, second = compare.table([*ours, *theirs]).splitlines()[1:]
    assert first.split()[-4:] == ["forge", "40.00", "10.00", "90.00"]
    assert second.endswith("20.00     10.00     30.00   2.00 x (1.00 to 3.00)")


def test_peers_get_the_same_model_the_streams_and_the_positions(compare: Any) -> None:
    import servers

    llama = servers.peer_server("llama-server=/bin/llama", "m.gguf", 16, 1100, ["--mlock"])
    port = llama.url.rpartition(":")[2]
    command = list(llama.command)
    assert command[0] == "/bin/llama"
    for flag, value in (("-m", "m.gguf"), ("--port", port), ("--parallel", "16"), ("--ctx-size", "17600")):
        assert command[command.index(flag) + 1] == value
    assert command[-1] == "--mlock"
    vllm = servers.peer_server("vllm=/bin/vllm:/weights", "m.gguf", 8, 1100, [])
    assert vllm.command[:3] == ("/bin/vllm", "serve", "/weights")
    other = servers.peer_server("other=http://h:1", "m.gguf", 8, 1100, [])
    assert (other.name, other.command, other.url) == ("other", None, "http://h:1")
    for text in ("llama-server", "llama-server=", "vllm=/bin/vllm", "what=/bin/what", ""):
        with pytest.raises(ValueError, match="llama-server=BINARY"):
            servers.peer_server(text, "m.gguf", 1, 1, [])
