"""What a server's memory is made of while so many streams are answered: the model, the KV cache, and the rest.

    python benchmarks/memory.py [MODEL] [--streams 32]

Resident sizes are from the kernel's own sums. A page that several processes share is counted once, in parts
("proportional"); ours alone are "private". The KV cache counts with the blocks that were ever in use: untouched ones
take no memory. Linux only.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx

from forge import models, plugins
from forge.bench.run import Client
from forge.bench.settings import Settings, Stage
from forge.components import create, open_checkpoint
from forge.config import load_config
from forge.testing.server import Server, serve

KINDS = ("Rss", "Pss", "Pss_Anon", "Pss_File", "Anonymous")


def resident(pid: int) -> Mapping[str, float]:
    """Megabytes by the kernel's name for them, and "private"."""
    found: dict[str, float] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, value, *_ = line.split()
        found[name.rstrip(":")] = int(value) * 1024 / 1e6
    return found | {"private": found["Private_Clean"] + found["Private_Dirty"]}


def bytes_per_position(path: Path) -> int:
    """What the default backend keeps of one position in all layers."""
    registry = plugins.load()
    config, _ = load_config(None, {})
    checkpoint = open_checkpoint(registry, path)
    backend = create(registry, "backend", registry.choose("backend"), config.backend.options, 0, None)
    model = create(registry, "model", checkpoint.architecture, {}, checkpoint, backend)
    return sum(backend.kv_bytes(layer) for layer in model.kv_spec())


def cached_positions(url: str) -> int:
    """Positions of the blocks that hold something."""
    text = httpx.get(f"{url}/metrics").text
    shares = [
        float(match[1]) for match in re.finditer(r"^forge:kv_cache_(?:usage|reusable)_perc ([\d.e+-]+)", text, re.M)
    ]
    shape = re.search(r'cache_config_info[^}\n]*block_size="(\d+)",num_blocks="(\d+)"', text)
    if len(shares) != 2 or shape is None:
        raise SystemExit("memory: the server doesn't say how full its cache is")
    return round(sum(shares) * int(shape[1]) * int(shape[2]))


async def load(server: Server, streams: int) -> dict[str, Mapping[str, float]]:
    """Keep so many streams busy for two requests each; the greatest memory of each process meanwhile."""
    settings = Settings(url=server.url, concurrency=(streams,))
    client = await Client.connect(settings)
    peak: dict[str, Mapping[str, float]] = {}
    stage = asyncio.create_task(client.stage(Stage(streams, None, 2 * streams, 0)))
    while not stage.done():
        for name, pid in (("server", server.process.pid), ("engine", server.engine.pid)):
            now = resident(pid)
            if now["Pss"] > peak.get(name, {"Pss": 0.0})["Pss"]:
                peak[name] = now
        await asyncio.sleep(0.25)
    await stage
    return peak


def main() -> None:
    """Print a table and the sum that remains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--streams", type=int, default=32)
    given = parser.parse_args()
    path = models.resolve(given.model, plugins.load())
    position = bytes_per_position(path)
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), path) as server:
        server.wait()
        print("MB                " + "".join(f"{name:>12}" for name in (*KINDS, "private")))
        idle = {"server": server.process.pid, "engine": server.engine.pid}
        for name, pid in idle.items():
            _line(f"{name}, idle", resident(pid))
        peak = asyncio.run(load(server, given.streams))
        for name, found in peak.items():
            _line(f"{name}, loaded", found)
        kv = cached_positions(server.url) * position / 1e6
    file = path.stat().st_size / 1e6
    total = sum(found["Pss"] for found in peak.values())
    print(f"both, proportional {total:.0f} MB = model file {file:.0f} + KV cache {kv:.0f} + {total - file - kv:.0f}")


def _line(name: str, found: Mapping[str, float]) -> None:
    print(f"{name:18}" + "".join(f"{found[kind]:>12.1f}" for kind in (*KINDS, "private")))


if __name__ == "__main__":
    main()
