"""CUDA graphs of decode steps: the first step of a size runs as it is and compiles its kernels, the second is recorded.

A graph reads and writes the memory that it was recorded with: the padded buffers of `forge_cuda.staging`, and its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any

import torch

from forge.errors import ConfigError

log = logging.getLogger(__name__)

Step = Callable[[], torch.Tensor]


def record(step: Step, pool: Any = None) -> Step:
    """A recorded step: calling it runs it again on the same memory and gives the same tensor.

    pool: of the memory that graphs share, since one runs after the other.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads of a process may go on using other devices: only this one's calls have to be fit for recording.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = step()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


class Graphs:
    """The recorded steps of one backend, by size."""

    def __init__(self, recorder: Callable[[Step], Step] | None) -> None:
        self._record = recorder
        self._seen: set[Hashable] = set()
        self._recorded: dict[Hashable, Step] = {}

    def run(self, key: Hashable, step: Step) -> torch.Tensor:
        """The step's result, recorded if the key has come before. A result is valid until the next run."""
        if key in self._recorded:
            return self._recorded[key]()
        if self._record is None or key not in self._seen:
            self._seen.add(key)
            return step()
        try:
            self._recorded[key] = self._record(step)
        except (torch.cuda.OutOfMemoryError, ConfigError):
            log.warning("there is no memory for more CUDA graphs: steps of further sizes run without")
        except torch.AcceleratorError as error:  # if it's more than the recording, the step fails again
            log.warning("a step can't be recorded as a CUDA graph, further sizes run without: %s", error)
        if key not in self._recorded:
            self._record = None
            return step()
        return self._recorded[key]()

    def clear(self) -> None:
        """Forget all, and free their memory."""
        self._recorded.clear()
        self._seen.clear()
