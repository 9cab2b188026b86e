"""Number formats as the kernels read them: a GGUF block's bits, sorted into planes whose loads are aligned.

GGUF's blocks have odd sizes (34, 18, 210 bytes), so that a thread could read them only byte by byte. On its way to the
device a tensor is split, no bit lost, into one array for each kind of number. All rows look alike, whatever the format:
a *group* is 32 consecutive weights.

    quants   Q8_0: 32 bytes a group. Others: 16 bytes; byte j has weight j in its low and j + 16 in its high half
    high     Q5_K: the fifth bits, a 32-bit word a group, bit j for weight j. Q6_K: the upper two bits of each weight,
             two words a group, the first for weights 0 to 15
    scales   two bytes a group. Q4_K, Q5_K: factors of d and of dmin, unsigned. Q6_K: signed, for each half of the group
    deltas   float16. Q8_0, Q4_0: d a group. Q4_1: d, m a group. Q4_K, Q5_K: d, dmin and Q6_K: d every 8 groups

Sources: ggml's ``ggml-common.h`` for the blocks; weight = scale * quant - minimum for all of them.
"""

from __future__ import annotations

import torch
from attrs import frozen

GROUP = 32
"""Weights that share a scale (in Q6_K half as many do)."""

Planes = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""quants, high and scales as uint8, deltas as float16, each ``[rows, …]``; unused ones have no columns."""


@frozen
class Format:
    """A quantised GGUF encoding: `block` weights in `nbytes` bytes; columns that each plane has for a block."""

    name: str
    block: int
    nbytes: int
    quants: int
    high: int
    scales: int
    deltas: int

    def widths(self, columns: int) -> tuple[int, int, int, int]:
        """Columns of the planes of rows with so many weights."""
        blocks = columns // self.block
        return blocks * self.quants, blocks * self.high, blocks * self.scales, blocks * self.deltas


FORMATS = {
    fmt.name: fmt
    for fmt in (
        Format("Q8_0", 32, 34, quants=32, high=0, scales=0, deltas=1),
        Format("Q4_0", 32, 18, quants=16, high=0, scales=0, deltas=1),
        Format("Q4_1", 32, 20, quants=16, high=0, scales=0, deltas=2),
        Format("Q4_K", 256, 144, quants=128, high=0, scales=16, deltas=2),
        Format("Q5_K", 256, 176, quants=128, high=32, scales=16, deltas=2),
        Format("Q6_K", 256, 210, quants=128, high=64, scales=16, deltas=1),
    )
}


def split(fmt: Format, stored: torch.Tensor) -> Planes:
    """A tensor's bytes ``[rows, blocks * nbytes]``, uint8 on any device, as planes."""
    rows = stored.shape[0]
    blocks = stored.view(rows, -1, fmt.nbytes)

    def plane(values: torch.Tensor) -> torch.Tensor:
        return values.reshape(rows, -1)

    def halves(start: int, count: int) -> torch.Tensor:
        return plane(blocks[..., start : start + 2 * count]).contiguous().view(torch.float16)

    none = stored.new_empty(rows, 0)
    match fmt.name:
        case "Q8_0" | "Q4_0" | "Q4_1":
            at = 2 * fmt.deltas
            return plane(blocks[..., at:]), none, none, halves(0, fmt.deltas)
        case "Q4_K" | "Q5_K":
            quants = _nibbles(blocks[..., -128:].unflatten(-1, (4, 1, 32)))
            high = none
            if fmt.name == "Q5_K":
                bits = blocks[..., 16:48].unsqueeze(-2) >> _shifts(stored, 8, 1)[:, None] & 1
                high = plane(_pack(bits, 1))
            return plane(_pair(quants)), high, plane(_k_scales(blocks[..., 4:16])), halves(0, 2)
        case "Q6_K":
            quants = _nibbles(blocks[..., :128].unflatten(-1, (2, 2, 32)))
            bits = blocks[..., 128:192].unflatten(-1, (2, 1, 32)) >> _shifts(stored, 4, 2)[:, None] & 3
            return plane(_pair(quants)), plane(_pack(bits, 2)), plane(blocks[..., 192:208]), halves(208, 1)
    raise AssertionError(fmt.name)


def merge(fmt: Format, planes: Planes) -> torch.Tensor:
    """The weights that planes stand for, as float32 ``[rows, columns]``."""
    quants, high, scales, deltas = planes
    rows = len(quants)
    d = deltas.float()
    if fmt.name == "Q8_0":
        return (quants.view(torch.int8).view(rows, -1, GROUP) * d[..., None]).flatten(1)
    pairs = quants.view(rows, -1, 16)
    q = torch.cat((pairs & 15, pairs >> 4), dim=-1)
    match fmt.name:
        case "Q4_0":
            values = (q.float() - 8) * d[..., None]
        case "Q4_1":
            values = q * d[:, 0::2, None] + d[:, 1::2, None]
        case "Q4_K" | "Q5_K":
            if fmt.name == "Q5_K":
                q = q | (_unpack(high, 1) << 4)
            factors = scales.view(rows, -1, 8, 2).float()
            scale, minimum = ((d[:, i::2, None] * factors[..., i]).flatten(1)[..., None] for i in (0, 1))
            values = scale * q - minimum
        case _:
            q = (q | (_unpack(high, 2) << 4)).float() - 32
            scale = (d[..., None] * scales.view(torch.int8).view(rows, -1, 16)).view(rows, -1, 2)
            values = q * scale.repeat_interleave(16, dim=-1)
    return values.flatten(1)


def _shifts(like: torch.Tensor, count: int, bits: int) -> torch.Tensor:
    return torch.arange(0, count * bits, bits, dtype=torch.uint8, device=like.device)


def _nibbles(quants: torch.Tensor) -> torch.Tensor:
    """``[…, 1 or 2, 32]`` bytes → the groups they make, low halves first: ``[…, 2 or 4, 32]`` values."""
    return torch.cat((quants & 15, quants >> 4), dim=-2)


def _pair(values: torch.Tensor) -> torch.Tensor:
    """Groups of 32 four-bit values → 16 bytes each."""
    return values[..., :16] | values[..., 16:] << 4


def _pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Groups of 32 values of so many bits → 4 * bits bytes each, weight 0 in the lowest bits of the first."""
    each = 8 // bits
    parts = values.unflatten(-1, (-1, each)) << _shifts(values, each, bits)
    return parts.sum(-1, dtype=torch.uint8)


def _unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """What `_pack` packed, as groups: ``[rows, groups, 32]``."""
    each = 8 // bits
    values = packed[..., None] >> _shifts(packed, each, bits) & (1 << bits) - 1
    return values.view(len(packed), -1, GROUP)


def _k_scales(packed: torch.Tensor) -> torch.Tensor:
    """The 8 pairs of 6-bit factors in a K-quant's 12 bytes: ``[…, 12]`` → ``[…, 8, 2]`` (scale, minimum)."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scale = torch.cat((a & 63, c & 15 | a >> 6 << 4), dim=-1)
    minimum = torch.cat((b & 63, c >> 4 | b >> 6 << 4), dim=-1)
    return torch.stack((scale, minimum), dim=-1)
