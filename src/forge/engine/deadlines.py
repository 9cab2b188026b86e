"""Time limits of requests: until their first step, and until their end. The engine says what time it is."""

from __future__ import annotations

from collections import deque
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
        self._waiting: deque[LiveSequence] = deque()
        self._running: deque[LiveSequence] = deque()

    def add(self, seq: LiveSequence) -> None:
        """A sequence has arrived."""
        if self.limits.queue:
            self._waiting.append(seq)
        if self.limits.request:
            self._running.append(seq)

    def due(self, now: float) -> Iterator[tuple[LiveSequence, ForgeError]]:
        """Those whose time is up, each once per limit; they may be over already."""
        queue, request = self.limits.queue, self.limits.request
        while self._waiting and (self._waiting[0].started is not None or now - self._waiting[0].arrival >= queue):
            seq = self._waiting.popleft()
            if seq.started is None:
                yield (
                    seq,
                    QueueTimeout(
                        f"the request waited for {queue:g} s (scheduler.queue_timeout) and was not begun", retry_after=1
                    ),
                )
        while self._running and now - self._running[0].arrival >= request:
            yield (
                self._running.popleft(),
                DeadlineExceeded(f"the answer took longer than {request:g} s (scheduler.request_timeout)"),
            )
