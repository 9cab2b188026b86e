"""Time limits of requests: until their first step, and until their end. The engine says what time it is."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from attrs import frozen

from forge.engine.sequence import LiveSequence
from forge.errors import DeadlineExceeded, ForgeError, QueueTimeout


@frozen
class TimeLimits:
    """Seconds; 0: no limit. queue: from arrival to the first step. request: from arrival to the end."""

    queue: float = 0.0
    request: float = 0.0


class Deadlines:
    """Which sequences' time is up. Each limit is the same for all, so that they come due in the order of arrival."""

    def __init__(self, limits: TimeLimits) -> None:
        self.limits = limits
        self._waiting: OrderedDict[int, LiveSequence] = OrderedDict()
        self._running: OrderedDict[int, LiveSequence] = OrderedDict()

    def add(self, seq: LiveSequence) -> None:
        """A sequence has arrived."""
        if self.limits.queue:
            self._waiting[seq.id] = seq
        if self.limits.request:
            self._running[seq.id] = seq

    def __len__(self) -> int:
        """Limits that are still to come."""
        return len(self._waiting) + len(self._running)

    def remove(self, seq: LiveSequence) -> None:
        """A sequence is over: its limits hold it, and its tokens, no longer. Unknown sequences are fine."""
        self._waiting.pop(seq.id, None)
        self._running.pop(seq.id, None)

    def due(self, now: float) -> Iterator[tuple[LiveSequence, ForgeError]]:
        """Those whose time is up, each once per limit."""
        queue, request = self.limits.queue, self.limits.request
        while self._waiting:
            seq = next(iter(self._waiting.values()))
            if seq.started is None and now - seq.arrival < queue:
                break
            del self._waiting[seq.id]
            if seq.started is None:
                yield (
                    seq,
                    QueueTimeout(
                        f"the request waited for {queue:g} s (scheduler.queue_timeout) and was not begun", retry_after=1
                    ),
                )
        while self._running:
            seq = next(iter(self._running.values()))
            if now - seq.arrival < request:
                break
            del self._running[seq.id]
            yield seq, DeadlineExceeded(f"the answer took longer than {request:g} s (scheduler.request_timeout)")
