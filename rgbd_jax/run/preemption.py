"""Requests to stop: SIGTERM from a scheduler that wants the machine back, Ctrl-C from a person."""

import signal
from types import FrameType, TracebackType

import jax
from jax.experimental import multihost_utils

# Status of a run that was asked to stop and has saved: "try again later" (EX_TEMPFAIL of sysexits.h).
PREEMPTED = 75


class PreemptedError(Exception):
    """The run was asked to stop and has saved its state; the same command goes on from there."""


class StopRequests:
    """Tells, between two steps, whether the run has been asked to stop.

    In a group all processes are told at the same moment, whichever of them got SIGTERM: JAX's own handler passes it
    on. A process that is alone handles SIGTERM, and the first SIGINT, itself while this is in use as a context.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._asked = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequests":
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def received(self) -> bool:
        """Returns whether the run is to stop now; in a group all processes have to call it at the same moments."""
        if jax.process_count() > 1:
            self._asked += 1
            return multihost_utils.reached_preemption_sync_point(self._asked)
        return self._received is not None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second Ctrl-C: at once
        self._received = number
