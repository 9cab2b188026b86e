"""What people and programs get: the table, the JSON, the picture, the command."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import forge.bench.plot
from forge.cli import cli


@pytest.fixture
def served(server_factory: Any) -> Iterator[Any]:
    """The scripted server in a thread: the command has an event loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    fake = server_factory()

    async def start() -> asyncio.Server:
        listening = await asyncio.start_server(fake.answer, "127.0.0.1", 0)
        fake.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        return listening

    async def stop() -> None:
        listening.close()
        await listening.wait_closed()

    listening = asyncio.run_coroutine_threadsafe(start(), loop).result()
    yield fake
    asyncio.run_coroutine_threadsafe(stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def bench(url: str, *arguments: str) -> Result:
    sizes = ("--prompt-tokens", "50", "--output-tokens", "4", "--seed", "5")
    return CliRunner().invoke(cli, ["bench", url, *sizes, *arguments], prog_name="forge")


def test_the_json_has_settings_machine_figures_and_every_request_but_no_key(served: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    result = bench(
        served.url, "--concurrency", "1,2", "--requests", "3", "--json", str(path), "--raw", "--slo", "ttft:100",
        "--api-key", "sesame",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "sesame" not in path.read_text() + result.output
    report = json.loads(path.read_text())
    assert report.keys() == {"format", "forge", "date", "machine", "settings", "stages"}
    assert report["machine"].keys() >= {"cpu", "cores", "usable_threads", "memory", "platform", "python", "load"}
    assert report["settings"] == {
        "url": served.url, "model": None, "endpoint": "chat", "prompt_tokens": 50, "output_tokens": 4,
        "shared_prefix": 0, "temperature": 0.0, "ignore_eos": True, "concurrency": [1, 2], "rate": [], "requests": 3,
        "warmup": None, "slo": {"ttft": 100.0}, "timeout": 600.0, "seed": 5,
    }  # fmt: skip
    assert [stage["stage"]["concurrency"] for stage in report["stages"]] == [1, 2]
    for stage in report["stages"]:
        assert (stage["completed"], stage["output_tokens"], stage["prompt_tokens"]) == (3, 12, 150)
        assert stage["goodput"] == stage["request_rate"] > 0
        assert stage["itl"]["count"] == 9
        for metric in ("ttft", "itl", "tpot", "e2e"):
            assert stage[metric].keys() == {"count", "mean", "median", "p90", "p99", "max"}
            assert stage[metric]["median"] <= stage[metric]["p90"] <= stage[metric]["p99"] <= stage[metric]["max"]
        assert [request["index"] for request in stage["requests"]] == [0, 1, 2]
        assert all(len(request["gaps"]) == 3 and request["failure"] is None for request in stage["requests"])


def test_requests_stay_out_of_the_json_unless_asked_for(served: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    bench(served.url, "--concurrency", "1", "--json", str(path))
    (stage,) = json.loads(path.read_text())["stages"]
    assert "requests" not in stage
    assert "outcomes" not in stage


def test_the_table_has_a_line_for_each_load_under_its_titles(served: Any) -> None:
    result = bench(served.url, "--rate", "100,200.5", "--requests", "2", "--warmup", "0")
    lines = result.output.splitlines()
    (titles,) = [line for line in lines if "TTFT p50" in line]
    rows = [line for line in lines if line.strip().startswith(("100/s", "200.5/s"))]
    assert [line.split()[:3] for line in rows] == [["100/s", "2", "0"], ["200.5/s", "2", "0"]]
    assert {len(line) for line in rows} == {len(titles)}


def test_failures_are_shown_and_end_the_command_with_1(served: Any, wire: Any) -> None:
    served.replies = [None, [wire.whole(503, {"error": {"message": "loading"}})]]
    result = bench(served.url, "--concurrency", "1", "--requests", "2", "--warmup", "0")
    assert result.exit_code == 1
    assert "2 failed, status: 503" in result.output
    assert "loading" in result.output


def test_the_plot_is_a_png(served: Any, tmp_path: Path) -> None:
    path = tmp_path / "out.png"
    result = bench(served.url, "--concurrency", "1,2", "--plot", str(path))
    assert result.exit_code == 0, result.output
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert b"IEND" in data[-12:]


def test_without_matplotlib_a_plot_is_refused_before_anything_is_measured(
    served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forge.bench.plot, "find_spec", lambda _: None)
    result = bench(served.url, "--plot", str(tmp_path / "out.png"))
    assert result.exit_code == 1
    assert "forge[bench]" in result.output
    assert not served.heads


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--concurrency", "1", "--rate", "2"], "exclude each other"),
        (["--concurrency", "1,x"], "'1,x'"),
        (["--concurrency", "0"], "1"),
        (["--requests", "0"], "requests"),
        (["--slo", "speed:1"], "'speed'"),
        (["--raw"], "--json"),
    ],
)
def test_bad_flags_are_refused_by_name_before_anything_is_sent(served: Any, arguments: list[str], said: str) -> None:
    result = bench(served.url, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not served.heads


def test_a_file_that_cannot_be_written_is_one_line(served: Any, tmp_path: Path) -> None:
    result = bench(served.url, "--concurrency", "1", "--json", str(tmp_path / "none" / "out.json"))
    assert result.exit_code == 1
    assert "out.json can't be written" in result.output
