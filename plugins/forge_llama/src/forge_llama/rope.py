"""Rotary frequencies: the plain ones and their scalings for longer contexts (linear, YaRN, Llama 3).

Plain numbers in double precision; no tensors, and no knowledge of where the parameters were written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from attrs import frozen


@frozen
class Linear:
    """Position interpolation: all positions divided by `factor` (Chen et al., 2023, https://arxiv.org/abs/2306.15595)."""

    factor: float

    @property
    def magnitude(self) -> float:
        """Factor on sine and cosine."""
        return 1.0

    def scale(self, frequencies: list[float], theta: float) -> list[float]:
        """The scaled inverse frequencies."""
        return [frequency / self.factor for frequency in frequencies]


@frozen
class Llama3:
    """Llama 3.1's scaling: low frequencies are divided by `factor`, high ones kept, those between interpolated.

    A frequency is low if it turns fewer than `low_freq_factor` times within `original_context` positions, high if more
    than `high_freq_factor` times (https://github.com/meta-llama/llama-models, ``apply_scaling``).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    @property
    def magnitude(self) -> float:
        """Factor on sine and cosine."""
        return 1.0

    def scale(self, frequencies: list[float], theta: float) -> list[float]:
        """The scaled inverse frequencies."""
        scaled = []
        for frequency in frequencies:
            turns = self.original_context * frequency / (2 * math.pi)
            kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
            kept = min(max(kept, 0.0), 1.0)
            scaled.append(kept * frequency + (1 - kept) * frequency / self.factor)
        return scaled


@frozen
class Yarn:
    """YaRN (Peng et al., 2023, https://arxiv.org/abs/2309.00071): a ramp over the pairs between kept and interpolated.

    beta_fast, beta_slow: turns within `original_context` at which the ramp begins and ends. attention_factor: factor
    on sine and cosine. truncate: round the ramp's ends to whole pairs.
    """

    factor: float
    original_context: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    @property
    def magnitude(self) -> float:
        """Factor on sine and cosine."""
        return self.attention_factor

    def scale(self, frequencies: list[float], theta: float) -> list[float]:
        """The scaled inverse frequencies."""
        dim = 2 * len(frequencies)

        def pair(turns: float) -> float:
            return dim * math.log(self.original_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

        low, high = pair(self.beta_fast), pair(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, dim - 1)
        width = high - low if high != low else 0.001
        scaled = []
        for i, frequency in enumerate(frequencies):
            interpolated = min(max((i - low) / width, 0.0), 1.0)
            scaled.append(interpolated * frequency / self.factor + (1 - interpolated) * frequency)
        return scaled


def yarn_magnitude(factor: float, mscale: float = 1.0) -> float:
    """YaRN's recommended factor on sine and cosine: ``0.1 ln(factor) + 1``, the logarithm weighted with `mscale`."""
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


@frozen
class Rope:
    """How a model's heads of `dim` numbers are rotated.

    interleaved: pairs are neighbours rather than halves. gain: a further factor on sine and cosine.
    """

    theta: float
    dim: int
    interleaved: bool = False
    scaling: Linear | Llama3 | Yarn | None = None
    gain: float = 1.0

    @property
    def magnitude(self) -> float:
        """Factor on sine and cosine, all told."""
        return self.gain * (self.scaling.magnitude if self.scaling else 1.0)

    def inverse_frequencies(self, factors: Sequence[float] | None = None) -> tuple[float, ...]:
        """Radians a position, one for each of the ``dim / 2`` pairs.

        factors: what each is divided by, before any scaling (the ``rope_freqs.weight`` of GGUF files).
        """
        frequencies = [self.theta ** (-2 * i / self.dim) for i in range(self.dim // 2)]
        if factors is not None:
            frequencies = [frequency / factor for frequency, factor in zip(frequencies, factors, strict=True)]
        return tuple(self.scaling.scale(frequencies, self.theta) if self.scaling else frequencies)
