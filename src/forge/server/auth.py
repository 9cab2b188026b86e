"""API keys for the HTTP server: read from a file, compared in constant time. Knows nothing of what they open."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from attrs import frozen

from forge.errors import ConfigError, Unauthorized


@frozen
class ApiKeys:
    """The keys that open the server, kept as SHA-256 digests so that a comparison's time tells nothing of them."""

    digests: tuple[bytes, ...]

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """Read a file with one key a line; empty lines and lines that begin with ``#`` don't count. `ConfigError`."""
        try:
            lines = path.read_text("utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"server.api_key_file: {path} can't be read: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise ConfigError(f"server.api_key_file: {path} is not UTF-8 text (byte {error.start})") from error
        keys: list[bytes] = []
        for number, line in enumerate(lines, 1):
            key = line.strip()
            if not key or key.startswith("#"):
                continue
            if len(key.split()) > 1:
                raise ConfigError(f"server.api_key_file: {path}, line {number}: a key can't contain white space")
            keys.append(_digest(key.encode()))
        if not keys:
            raise ConfigError(f"server.api_key_file: {path} holds no key")
        return cls(tuple(keys))

    def check(self, authorization: str | None) -> None:
        """Let a request through by its Authorization header, or raise `Unauthorized`."""
        if not authorization:
            raise Unauthorized("an API key is required: send the header 'Authorization: Bearer <key>'")
        scheme, _, key = authorization.strip().partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise Unauthorized("the Authorization header must read 'Bearer <key>'")
        given = _digest(key.strip().encode("latin-1", "replace"))  # header values are latin-1 in ASGI
        matches = [hmac.compare_digest(given, known) for known in self.digests]  # always all of them
        if not any(matches):
            raise Unauthorized("the API key is not one of this server's")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
