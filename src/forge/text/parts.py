"""What a tokenizer is made of, whichever file format it came from, and the guard around the Rust library.

For `forge.text.tokenizer` and the two readers, `forge.text.gguf_vocabulary` and `forge.text.hf_vocabulary`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import tokenizers
from attrs import field, frozen

from forge.errors import ForgeError


@frozen
class Engines:
    """The library's tokenizers: two, that differ in whether special tokens' text is recognised.

    They may share one model; neither is changed once it's here, so that threads can use both at once. aliases: ids that
    they use in place of ours.
    """

    parsing: tokenizers.Tokenizer
    plain: tokenizers.Tokenizer
    aliases: Mapping[int, int] = field(factory=dict)


@frozen
class TokenizerParts:
    """A table of what each id stands for, and what makes the engines that encode.

    engines: may raise what reading the file may. texts, token_bytes: one entry an id; b"" for special ids. unknown_id:
    what stands for characters that the vocabulary lacks. lead: how many spaces at the start of a decoded text were put
    there by encoding.
    """

    engines: Callable[[], Engines]
    texts: tuple[str, ...]
    token_bytes: tuple[bytes, ...]
    special_ids: frozenset[int]
    bos_id: int | None
    eos_ids: tuple[int, ...]
    unknown_id: int | None = None
    lead: int = 0


@contextmanager
def library_errors(raise_as: Callable[[str], ForgeError]) -> Iterator[None]:
    """Turn whatever the tokenizers library raises into one of our errors.

    It raises bare `Exception`, and a panic of its Rust side is a `BaseException` of a class that can't be imported.
    """
    try:
        yield
    except ForgeError:
        raise
    except Exception as error:
        raise raise_as(str(error)) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise raise_as(f"the tokenizers library failed: {error}") from error


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's table: the character that stands for each byte, printable bytes for themselves, others from U+0100 on."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


BYTE_ALPHABET: Mapping[str, int] = _byte_alphabet()
"""The byte that each character of a byte-level vocabulary stands for."""

_NO_BYTE = 0xFFFF
_TO_LATIN = dict.fromkeys(range(256), _NO_BYTE) | {ord(letter): byte for letter, byte in BYTE_ALPHABET.items()}
"""The alphabet as the characters that Latin-1 writes as those bytes; others below U+0100 as one that it can't write."""


def byte_level_bytes(text: str) -> bytes:
    """The bytes of a byte-level token. One with a character outside the alphabet stands for its own text."""
    try:
        return text.translate(_TO_LATIN).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def fallback_byte(text: str) -> int | None:
    """The byte that a fallback token such as ``<0x0A>`` stands for; None for any other text."""
    if len(text) != 6 or not (text.startswith("<0x") and text.endswith(">")):
        return None
    digits = text[3:5]
    return int(digits, 16) if all(digit in "0123456789ABCDEFabcdef" for digit in digits) else None
