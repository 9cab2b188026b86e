"""What the model sources share: how files of a model are named, which belong together, whether they are as promised."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from forge.errors import ModelSourceError

LISTED = 20
"""How many candidates an error names at most."""

_SPLIT = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE | re.ASCII)
_SEGMENT = re.compile(r"\w[\w .+()-]*")


def split_parts(name: str) -> list[str]:
    """All files of a model, the first one first: ``x-00001-of-00003.gguf`` and so on, or the name alone.

    Any part stands for the whole. The naming is that of llama.cpp's ``gguf-split``.
    """
    match = _SPLIT.fullmatch(name)
    if match is None or not 1 <= int(match["part"]) <= int(match["parts"]):
        return [name]
    numbers = range(1, int(match["parts"]) + 1)
    return [f"{match['stem']}-{number:05}-of-{match['parts']}{match['suffix']}" for number in numbers]


def gguf_models(names: Iterable[str]) -> list[str]:
    """The GGUF models among some file names, sorted: of a split one the first part."""
    return sorted({split_parts(name)[0] for name in names if name.lower().endswith(".gguf")})


def holds_safetensors(directory: Path) -> bool:
    """Whether a directory has config.json and all the SafeTensors files that its index, if there is one, names."""
    if not (directory / "config.json").is_file() or not any(directory.glob("*.safetensors")):
        return False
    for index in directory.glob("*.safetensors.index.json"):
        try:
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
        if not all((directory / str(shard)).is_file() for shard in shards):
            return False
    return True


def safe_name(name: str, reference: str) -> str:
    """Return a file's name inside a wheel or repository if it can't lead out of a directory, else raise."""
    if all(_SEGMENT.fullmatch(segment) for segment in name.split("/")):
        return name
    raise ModelSourceError(
        f"{reference!r}: {name!r} is no usable file name (wanted: a relative path of names that begin with a letter, "
        "digit or underscore and go on with those, spaces, or any of . + - ( ) characters)"
    )


def check_sha256(path: Path, sha256: str, reference: str) -> None:
    """Compare a file with its checksum; some 0.3 s for 100 MB. Errors: `ModelSourceError`."""
    if not path.is_file():
        raise ModelSourceError(f"{reference!r}: a checksum was given, but {path} is not a single file")
    with path.open("rb") as file:
        same_sha256(hashlib.file_digest(file, "sha256").hexdigest(), sha256, reference)


def same_sha256(found: str, wanted: str, reference: str) -> None:
    """Errors: `ModelSourceError`, with both."""
    if found != wanted:
        raise ModelSourceError(f"{reference!r} has the wrong checksum: sha256 is {found}, {wanted} was expected")


def listed(names: list[str]) -> str:
    """Names for an error message, cut where there are too many."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
