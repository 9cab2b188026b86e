"""A plain decoder stack runs from its file to its tokens without torch being imported: it would take 200 MB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forge.testing.models import write_tiny_llama

RUN = """
import sys
from pathlib import Path
from forge import assemble, plugins
from forge.config import load_config
from forge.engine.request import Request
from forge.interfaces.sampler import SamplingParams

config, _ = load_config(None, {"--backend": "cpu", "--num-blocks": 64, "--threads": 1})
engine = assemble.build(config, plugins.load(), Path(sys.argv[1]))
assert "torch" not in sys.modules, "loading the model has imported torch"
for name, prompt, sampling in (
    ("greedy", [3, 4, 5] * 9, SamplingParams(temperature=0.0, logprobs=2)),
    ("drawn", [6, 7], SamplingParams(seed=1, top_p=0.9, presence_penalty=0.5)),
):
    engine.submit(Request(name, prompt, sampling, max_tokens=8, ignore_eos=True))
ids = {"greedy": [], "drawn": []}
while not engine.idle:
    for delta in engine.step():
        assert delta.error is None, delta.error
        ids[delta.request_id] += delta.token_ids
assert "torch" not in sys.modules, "a step has imported torch"
print(ids)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("models") / "tiny.gguf")


def test_loading_and_answering_import_no_torch(model: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(model)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(",") >= 14, done.stdout
