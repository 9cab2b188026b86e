"""From text to token ids and back, for the server and the engine; built from a GGUF file or a Hugging Face directory.

The engine underneath is the `tokenizers` library. Knows nothing of models, requests or chat templates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock
from typing import TYPE_CHECKING

from forge.errors import InvalidRequest
from forge.text.gguf_vocabulary import read_gguf
from forge.text.hf_vocabulary import read_huggingface
from forge.text.parts import Engines, TokenizerParts, library_errors

if TYPE_CHECKING:
    from forge.interfaces.loader import TokenizerSource


class Tokenizer:
    """A vocabulary and the way into it. Immutable: threads may share one.

    vocab_size: entries of the tokenizer's own vocabulary; a model's matrix may have more rows. bos_token_id,
    eos_token_ids: what the tokenizer's metadata says. special_ids: ids that are never part of the text, by their type
    (control, unknown, unused), never by how they're spelt. token_bytes: what each id stands for, b"" for special ids.
    """

    vocab_size: int
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    special_ids: frozenset[int]
    token_bytes: tuple[bytes, ...]

    def __init__(self, parts: TokenizerParts) -> None:
        self._texts = parts.texts
        self._lead = parts.lead
        self._make_engines: Callable[[], Engines] | None = parts.engines
        self._made: Engines | None = None
        self._making = Lock()
        self.vocab_size = len(parts.token_bytes)
        self.bos_token_id = parts.bos_id
        self.eos_token_ids = parts.eos_ids
        self.special_ids = parts.special_ids
        self.token_bytes = parts.token_bytes
        # The unknown token stands in for characters that the vocabulary lacks, so it may come from plain text.
        self._forbidden = parts.special_ids - {parts.unknown_id}

    def prepare(self) -> None:
        """Make now what encoding needs. Errors: as `build_tokenizer`."""
        self._engines()

    def _engines(self) -> Engines:
        with self._making:
            if self._made is None:
                assert self._make_engines is not None
                self._made = self._make_engines()
                self._make_engines = None  # it holds what the file says, some ten megabytes
            return self._made

    def encode(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """The ids of a text, in time linear in its length but for a logarithm.

        add_special: put BOS and EOS where the metadata wants them. parse_special: take the text of a special token for
        the token; False: for the characters that it's spelt with, as untrusted text should be. Errors: `InvalidRequest`
        for text that isn't Unicode (lone surrogates).
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"the text isn't valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at {error.start}"
            raise InvalidRequest(message) from error
        engines = self._engines()
        engine = engines.parsing if parse_special else engines.plain
        with library_errors(lambda reason: InvalidRequest(f"the text can't be tokenized: {reason}")):
            # Batches of one: unlike `encode`, this lets other Python threads run meanwhile.
            [encoding] = engine.encode_batch_fast([text], add_special_tokens=False)
            if not parse_special:
                self._check_plain(encoding.ids)
            if add_special:
                encoding = engine.post_process(encoding, None, True)
        aliases = engines.aliases
        return [aliases.get(token, token) for token in encoding.ids] if aliases else list(encoding.ids)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of these ids; bytes that aren't UTF-8 become U+FFFD.

        A space that encoding put before the text is taken away again. skip_special: False shows special tokens by
        their text. Errors: `InvalidRequest` for an id outside the vocabulary.
        """
        for place, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(
                    f"token id {token} at position {place} is outside the vocabulary ({self.vocab_size})"
                )
        table = self.token_bytes
        if skip_special:
            data = b"".join(table[token] for token in ids)
        else:
            data = b"".join(self.token_raw(token) for token in ids)
        text = data.decode(errors="replace")
        lead = self._lead
        return text[len(text[:lead]) - len(text[:lead].lstrip(" ")) :] if lead else text

    def token_text(self, token: int) -> str:
        """How one token is shown where probabilities are reported: special ones by their text, broken UTF-8 as U+FFFD.

        Empty for ids beyond the vocabulary, which a model's padded matrix may have.
        """
        return self.token_raw(token).decode(errors="replace")

    def token_raw(self, token: int) -> bytes:
        """The bytes of one token, for special ones those of their text; empty for ids beyond the vocabulary."""
        if not 0 <= token < self.vocab_size:
            return b""
        return self._texts[token].encode() if token in self.special_ids else self.token_bytes[token]

    def _check_plain(self, ids: Sequence[int]) -> None:
        """No plain text may become a control token. Only a vocabulary whose own merges spell one can get here."""
        if not self._forbidden.isdisjoint(ids):
            token = next(token for token in ids if token in self._forbidden)
            text = self._texts[token]
            raise InvalidRequest(f"this tokenizer can't encode {text!r} as plain text, only as a special token")


def build_tokenizer(source: TokenizerSource, *, prepared: bool = True) -> Tokenizer:
    """Make the tokenizer that a checkpoint describes.

    prepared: ready to encode; False: what only encoding needs, a third of the time and most of the memory, is made when
    a text is first encoded. Errors: `ModelFileError` for damage, `UnsupportedModel` for a kind, pre-tokenizer or option
    that isn't implemented.
    """
    gguf = source.format == "gguf"
    tokenizer = Tokenizer(read_gguf(source.metadata) if gguf else read_huggingface(source.path, source.metadata))
    if prepared:
        tokenizer.prepare()
    return tokenizer
