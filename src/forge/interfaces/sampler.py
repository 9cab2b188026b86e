"""Samplers: from logits to tokens. Every row is sampled as if it were alone.

Randomness is a function of (seed, choice, position) and nothing else, so that neither the batch, nor drafts, nor a
preemption change what is drawn. A draft is accepted as far as it equals the samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from forge.interfaces.deferred import Deferred

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch

    from forge.interfaces.scheduler import Batch, Sequence
else:
    np = Deferred("numpy")  # requests have `SamplingParams`, and the server starts the engine before it needs numpy

MAX_TOP_LOGPROBS = 20
"""The most alternatives that a request may ask for, as in OpenAI's API."""


@frozen
class SamplingParams:
    """How a sequence's tokens are drawn. Neutral by default; applied in the order of the fields.

    logit_bias: added to the logits, by id. repetition_penalty (1: off) divides positive and multiplies negative logits
    of ids in prompt or answer; presence_penalty and frequency_penalty are subtracted once, or once an occurrence, for
    ids in the answer. temperature 0: greedy, lowest id on ties. top_k 0, top_p 1, min_p 0: off. seed: unsigned 64 bits.
    logprobs: None for none, else how many alternatives to report beside the drawn token, 0 to 20.
    """

    logit_bias: Mapping[int, float] = field(factory=dict)
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    logprobs: int | None = None

    @property
    def penalized(self) -> bool:
        """Whether the tokens so far matter."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0


def uniforms(
    seed: npt.NDArray[np.uint64], choice: npt.NDArray[np.uint32], position: npt.NDArray[np.uint32]
) -> npt.NDArray[np.float64]:
    """The one random number of each row: float64 [R] in [0, 1), a pure function of (seed, choice, position).

    Philox4x32-10 (Salmon et al., 2011, "Parallel random numbers: as easy as 1, 2, 3") with the seed as key and
    (position, choice, 0, 0) as counter; the upper 53 bits of the first two words.
    """
    counter = [position.astype(np.uint64), choice.astype(np.uint64), np.zeros(len(seed), np.uint64)]
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    words = philox4x32([*counter, counter[2]], [seed & low, seed >> high])
    bits: npt.NDArray[np.uint64] = (words[0] << high | words[1]) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53


def philox4x32(
    counter: list[npt.NDArray[np.uint64]], key: list[npt.NDArray[np.uint64]]
) -> list[npt.NDArray[np.uint64]]:
    """Ten rounds of Philox4x32 on arrays of 32-bit words kept in uint64: 4 counter words, 2 key words → 4 words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> high) ^ c1 ^ k0, b & low, (a >> high) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return [c0, c1, c2, c3]


@frozen
class TokenLogprobs:
    """Natural-log probabilities under the model itself, before bias, penalties, masks and temperature.

    token: of the token at hand. top: the most probable (id, log-probability) pairs, best first.
    """

    token: float
    top: tuple[tuple[int, float], ...] = ()


@frozen
class Picked:
    """What a step drew, span by span.

    tokens: the accepted drafts and one more; empty where the span doesn't reach its sequence's end.
    logprobs: one for each of `tokens`, or None where they weren't asked for.
    prompt_logprobs: for each scored prompt row, in order, of the prompt token that follows it; empty elsewhere.
    """

    tokens: list[list[int]]
    logprobs: list[list[TokenLogprobs] | None]
    prompt_logprobs: list[list[TokenLogprobs]]


@frozen
class RowSampling:
    """Everything that decides a slab's draws, as flat arrays: R rows, in the order of the logits.

    The generated tokens of row r so far are ``history_ids[history_starts[r]:history_starts[r + 1]]``, each id once,
    with its number of occurrences in `history_counts` (0 for an id that only the prompt has). Biases likewise. Arrays
    are None where no row uses them.
    """

    temperature: npt.NDArray[np.float32]
    top_k: npt.NDArray[np.int32]
    top_p: npt.NDArray[np.float32]
    min_p: npt.NDArray[np.float32]
    seed: npt.NDArray[np.uint64]
    choice: npt.NDArray[np.uint32]
    position: npt.NDArray[np.uint32]
    """[R], of the token to be drawn: 0 is the first of the prompt."""
    repetition_penalty: npt.NDArray[np.float32] | None = None
    presence_penalty: npt.NDArray[np.float32] | None = None
    frequency_penalty: npt.NDArray[np.float32] | None = None
    history_starts: npt.NDArray[np.int64] | None = None
    history_ids: npt.NDArray[np.int64] | None = None
    history_counts: npt.NDArray[np.int64] | None = None
    bias_starts: npt.NDArray[np.int64] | None = None
    bias_ids: npt.NDArray[np.int64] | None = None
    bias_values: npt.NDArray[np.float32] | None = None
    banned_starts: npt.NDArray[np.int64] | None = None
    banned_ids: npt.NDArray[np.int64] | None = None
    """Ids that may not be drawn."""
    masks: npt.NDArray[np.int32] | None = None
    """[R, ceil(vocabulary / 32)], one bit a vocabulary entry, 1 means allowed."""
    targets: npt.NDArray[np.int64] | None = None
    """[R], the id to score instead of drawing one; -1: draw."""
    logprobs: int | None = None
    """How many alternatives to report (the most that any row wants); None: no log-probabilities at all."""


@frozen
class Sampled:
    """A slab's draws, on the host.

    tokens: int64 [R]. logprobs: float32 [R], top_ids: int64 [R, k], top_logprobs: float32 [R, k], or None.
    """

    tokens: npt.NDArray[np.int64]
    logprobs: npt.NDArray[np.float32] | None = None
    top_ids: npt.NDArray[np.int64] | None = None
    top_logprobs: npt.NDArray[np.float32] | None = None


class Sampler(ABC):
    """Draws the next tokens of a batch. The factory is called with ``(backend)``, plus ``options=`` if it has some."""

    @abstractmethod
    def sample(
        self, logits: Iterable[torch.Tensor], masks: Mapping[int, npt.NDArray[np.int32]], batch: Batch
    ) -> Picked:
        """Draw for every span that reaches its sequence's end.

        logits: slabs of float32 ``[at most 64, vocabulary]``, made as they're asked for; together they have a row for
        each of ``span.output_rows`` of each span, in order. masks: by sequence id, ``[rows that are drawn, words]``.
        """

    @abstractmethod
    def release(self, seq: Sequence) -> None:
        """The sequence is over: forget it. Unknown sequences are fine."""

    def state(self) -> Any:
        """What is held for live sequences, for `check` in tests: anything with a length."""
        return ()
