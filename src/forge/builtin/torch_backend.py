"""The backend `torch`: the plain base class as it is. The reference, and what runs everywhere."""

from __future__ import annotations

from forge.interfaces.backend import Backend


class TorchBackend(Backend):
    """Nothing overridden."""
