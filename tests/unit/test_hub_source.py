"""The Hugging Face source against a small hub on this machine, through the real client library."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from attrs import field, frozen

from forge.builtin.sources import HubModel, HuggingFaceSource
from forge.errors import ModelSourceError

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "feature/x": "c" * 40}

REPOSITORIES = {
    "org/tensors": [
        "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
        "special_tokens_map.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "pytorch_model.bin", "model.pt", "README.md", "onnx/model.safetensors",
        "consolidated.safetensors", "training_args.bin",
    ],
    "org/one-gguf": ["README.md", "config.json", "m.Q4_K_M.gguf"],
    "org/many-gguf": ["m.Q4_K_M.gguf", "m.Q8_0.gguf", "sub/m-f16-00001-of-00002.gguf", "sub/m-f16-00002-of-00002.gguf"],
    "org/pickles": ["config.json", "pytorch_model.bin"],
}  # fmt: skip

CHILD = """
import json, sys
from pathlib import Path
from forge.builtin.sources import HuggingFaceSource
from forge.errors import ModelSourceError
source = HuggingFaceSource(Path("unused"))
for reference in sys.argv[1:]:
    try:
        print(json.dumps({"path": str(source.fetch(reference))}))
    except ModelSourceError as error:
        print(json.dumps({"error": error.message}))
print(json.dumps({model.reference: [str(model.path), model.nbytes] for model in source.cached()}))
"""


def content(repository: str, revision: str, name: str) -> bytes:
    if name.endswith(".index.json"):
        shards = [file for file in REPOSITORIES[repository] if file.startswith("model-")]
        return json.dumps({"weight_map": {shard: shard for shard in shards}}).encode()
    return f"{repository} {revision} {name}".encode()


class _Hub(http.server.BaseHTTPRequestHandler):
    """The endpoints that a download needs: a revision's commit, the tree of its files, the files themselves."""

    requests: list[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.requests.append(f"{self.command} {path}")
        status, headers, data = self._route(path)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def _route(self, path: str) -> tuple[int, dict[str, str], bytes]:
        api = path.startswith("/api/models/")
        owner, name, *rest = path.removeprefix("/api/models/" if api else "/").split("/")
        repository = f"{owner}/{name}"
        if repository == "org/gated":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        if repository not in REPOSITORIES:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        operation, rest = (rest[0], rest[1:]) if rest else ("revision", ["main"])
        wanted = "/".join(rest)
        revision = next((r for r in [*COMMITS, *COMMITS.values()] if f"{wanted}/".startswith(f"{r}/")), None)
        if revision is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        commit = COMMITS.get(revision, revision)
        files = REPOSITORIES[repository]
        if operation == "resolve":
            file = wanted.removeprefix(f"{revision}/")
            if file not in files:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
            data = content(repository, commit, file)
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}, data
        answers: dict[str, Any] = {
            "revision": {"id": repository, "sha": commit, "siblings": [{"rfilename": file} for file in files]},
            "tree": [
                {
                    "type": "file",
                    "path": file,
                    "size": len(content(repository, commit, file)),
                    "oid": hashlib.sha1(content(repository, commit, file)).hexdigest(),
                }
                for file in files
            ],
        }
        return 200, {"Content-Type": "application/json"}, json.dumps(answers[operation]).encode()

    def log_message(self, format: str, *args: object) -> None:
        pass


@frozen
class Hub:
    """A client with an empty cache, and its hub. fetch: run the source on references, in a process of its own, since
    the client library reads its environment at import; gives an answer for each, and what is cached then.
    """

    environment: dict[str, str]
    home: Path
    requests: list[str] = field(factory=list)

    def fetch(self, *references: str, **environment: str) -> tuple[list[dict[str, str]], dict[str, tuple[str, int]]]:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *references],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""  # nothing is drawn where there's no terminal
        *answers, cached = [json.loads(line) for line in done.stdout.splitlines()]
        return answers, cached


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    handler = type("Handler", (_Hub,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        ours = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        theirs = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        yield Hub({**theirs, **ours}, tmp_path / "hf", handler.requests)
        server.shutdown()
        thread.join()


def snapshot(hub: Hub, repository: str, revision: str = "main") -> Path:
    return hub.home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMITS[revision]


def test_a_repository_of_tensors_comes_whole_without_pickles_and_duplicates(hub: Hub) -> None:
    (answer,), cached = hub.fetch("hf:org/tensors")
    home = snapshot(hub, "org/tensors")
    assert answer == {"path": str(home)}
    unwanted = {"pytorch_model.bin", "model.pt", "README.md", "onnx/model.safetensors", "consolidated.safetensors",
                "training_args.bin"}  # fmt: skip
    found = {path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()}
    assert found == set(REPOSITORIES["org/tensors"]) - unwanted
    for name in found:
        assert (home / name).read_bytes() == content("org/tensors", COMMITS["main"], name)
    assert cached == {"hf:org/tensors": [str(home), sum((home / name).stat().st_size for name in found)]}


def test_what_was_fetched_is_served_offline_and_the_rest_is_refused_without_a_request(hub: Hub) -> None:
    references = ("hf:org/tensors", "hf:org/one-gguf", "hf:org/many-gguf:m.Q8_0.gguf")
    online, _ = hub.fetch(*references)
    assert all("path" in answer for answer in online)
    hub.requests.clear()
    offline, cached = hub.fetch(*references, "hf:org/pickles", "hf:org/many-gguf:m.Q4_K_M.gguf", HF_HUB_OFFLINE="1")
    assert offline[:3] == online
    for refused in offline[3:]:
        assert "HF_HUB_OFFLINE forbids" in refused["error"]
    assert hub.requests == []
    assert set(cached) == {"hf:org/tensors", "hf:org/one-gguf:m.Q4_K_M.gguf", "hf:org/many-gguf:m.Q8_0.gguf"}


def test_a_hub_out_of_reach_is_told_unless_the_cache_has_the_file(hub: Hub) -> None:
    wanted = "hf:org/many-gguf:m.Q8_0.gguf"
    online, _ = hub.fetch(wanted)
    nobody = "http://127.0.0.1:9"  # the discard port
    (again, whole, missing), _ = hub.fetch(wanted, "hf:org/many-gguf", "hf:org/tensors", HF_ENDPOINT=nobody)
    assert [again] == online
    assert whole == again  # of what there is in reach, it is the only one
    assert f"{nobody} didn't give it" in missing["error"]
    assert "Connection refused" in missing["error"]


def test_one_file_means_that_file_and_a_split_one_all_its_parts(hub: Hub) -> None:
    answers, cached = hub.fetch("hf:org/many-gguf:m.Q8_0.gguf", "hf:org/many-gguf:sub/m-f16-00002-of-00002.gguf")
    home = snapshot(hub, "org/many-gguf")
    parts = [home / "sub" / f"m-f16-0000{i}-of-00002.gguf" for i in (1, 2)]
    assert [answer["path"] for answer in answers] == [str(home / "m.Q8_0.gguf"), str(parts[0])]
    assert all(part.is_file() for part in parts)
    assert not (home / "m.Q4_K_M.gguf").exists()
    assert cached == {
        "hf:org/many-gguf:m.Q8_0.gguf": [str(home / "m.Q8_0.gguf"), (home / "m.Q8_0.gguf").stat().st_size],
        "hf:org/many-gguf:sub/m-f16-00001-of-00002.gguf": [str(parts[0]), sum(p.stat().st_size for p in parts)],
    }


def test_the_only_gguf_model_of_a_repository_needs_no_file_name_but_one_of_several_does(hub: Hub) -> None:
    (one, many, pickles), _ = hub.fetch("hf:org/one-gguf", "hf:org/many-gguf", "hf:org/pickles")
    assert one["path"] == str(snapshot(hub, "org/one-gguf") / "m.Q4_K_M.gguf")
    assert ":m.Q4_K_M.gguf, m.Q8_0.gguf, sub/m-f16-00001-of-00002.gguf" in many["error"]
    assert "pickles aren't read" in pickles["error"]


@pytest.mark.parametrize("revision", ["v1", "feature/x", "b" * 40])
def test_a_revision_is_honoured(revision: str, hub: Hub) -> None:
    (answer,), cached = hub.fetch(f"hf:org/one-gguf@{revision}:m.Q4_K_M.gguf")
    commit = COMMITS.get(revision, revision)
    assert Path(answer["path"]).read_bytes() == content("org/one-gguf", commit, "m.Q4_K_M.gguf")
    assert list(cached) == [f"hf:org/one-gguf@{commit}:m.Q4_K_M.gguf"]


def test_each_failure_says_what_is_wrong(hub: Hub) -> None:
    references = ["hf:org/gated", "hf:org/nothing:a.gguf", "hf:org/one-gguf@v9", "hf:org/many-gguf:m.Q2_K.gguf"]
    answers, _ = hub.fetch(*references)
    said = [answer["error"] for answer in answers]
    for reference, message in zip(references, said, strict=True):
        assert reference.split(":")[1] in message
    assert "gated: ask for access" in said[0]
    assert "no such repository, or it's private" in said[1]
    assert "no such revision" in said[2]
    assert "no such file as 'm.Q2_K.gguf'; it has m.Q4_K_M.gguf, m.Q8_0.gguf" in said[3]


def test_a_wrong_checksum_is_told(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (answer,), _ = hub.fetch("hf:org/one-gguf")
    file = Path(answer["path"])
    monkeypatch.setattr(HuggingFaceSource, "_file", lambda *_: file)
    source = HuggingFaceSource(Path())
    good = hashlib.sha256(file.read_bytes()).hexdigest()
    assert source.fetch("hf:org/one-gguf:m.Q4_K_M.gguf", sha256=good) == file
    with pytest.raises(ModelSourceError, match=good):
        source.fetch("hf:org/one-gguf:m.Q4_K_M.gguf", sha256="0" * 64)


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("hf:a/b", HubModel("a/b", None, None)),
        ("hf:a/b.c-d:e/f.gguf", HubModel("a/b.c-d", None, "e/f.gguf")),
        ("hf:a/b@r/1.0:f.gguf", HubModel("a/b", "r/1.0", "f.gguf")),
    ],
)
def test_the_parts_of_a_reference_are_told_apart(reference: str, parsed: HubModel) -> None:
    assert HubModel.parse(reference) == parsed


@pytest.mark.parametrize(
    "reference", ["hf:", "hf:a", "hf:a/b/c", "hf:a/b:", "hf:a/b@", "hf:../b", "hf:a/b:../c", "hf:a/b:/c", "hf:a/b@-r"]
)
def test_a_malformed_reference_is_refused_before_any_request(reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # importing it would fail
    source = HuggingFaceSource(Path())
    assert source.accepts(reference)
    with pytest.raises(ModelSourceError) as caught:
        source.fetch(reference)
    assert repr(reference) in caught.value.message
