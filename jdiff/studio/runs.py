"""Runs in a thread of their own: what is drawn can be watched, and stopped. No Gradio here.

There is one lock, so that one run computes at a time, whoever asks.
"""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")

# Seconds between two looks at whether a run was stopped.
PATIENCE = 0.1
_computing = threading.Lock()


class Stopped(Exception):
    """Raised within a run that was stopped."""


class Step(NamedTuple):
    """How far a run is."""

    done: int
    total: int
    images: np.ndarray | None  # [m h w c] as they are


class Done(NamedTuple, Generic[T]):
    """The end of a run."""

    value: T | None  # None where it was stopped or failed
    error: Exception | None = None


# What a run calls: (rows done, rows in all, images [m h w c] or None).
Watch = Callable[[int, int, Any], None]


class Stops:
    """The stop signals of the runs that are going on, by session. It holds no results."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: dict[str, set[threading.Event]] = {}

    def start(self, session: str) -> threading.Event:
        """Returns the stop signal of a new run of a session."""
        event = threading.Event()
        with self._lock:
            self._events.setdefault(session, set()).add(event)
        return event

    def end(self, session: str, event: threading.Event) -> None:
        """Forgets a run that has ended."""
        with self._lock:
            events = self._events.get(session, set())
            events.discard(event)
            if not events:
                self._events.pop(session, None)

    def stop(self, session: str) -> int:
        """Stops all runs of a session; returns how many there were."""
        with self._lock:
            events = list(self._events.get(session, ()))
        for event in events:
            event.set()
        return len(events)

    def going_on(self) -> int:
        """Returns how many runs there are."""
        with self._lock:
            return sum(map(len, self._events.values()))


def run(work: Callable[[Watch], T], stop: threading.Event) -> Iterator[Step | Done[T]]:
    """Runs work in a thread; yields how far it is, skipping steps that nobody had time for, and then its end.

    The work ends at its next step once `stop` is set, or once the caller closes this generator.

    Args:
        work: is given a function that it calls after each step.
        stop: set by whoever wants the run to end.

    Example:
        >>> *_, last = run(lambda watch: 42, threading.Event())
        >>> last.value
        42
    """
    told: queue.SimpleQueue[Step | Done[T]] = queue.SimpleQueue()

    def watch(done: int, total: int, images: Any = None) -> None:
        if stop.is_set():
            raise Stopped
        told.put(Step(done, total, images))

    def call() -> None:
        try:
            with _computing:
                if stop.is_set():
                    raise Stopped
                value = work(watch)
            told.put(Done(value))
        except Stopped:
            told.put(Done(None))
        except Exception as error:
            told.put(Done(None, error))

    threading.Thread(target=call, name="jdiff studio run", daemon=True).start()
    try:
        while True:
            try:
                item = told.get(timeout=PATIENCE)
            except queue.Empty:
                if stop.is_set():  # the thread ends at its next step
                    yield Done(None)
                    return
                continue
            while isinstance(item, Step) and not told.empty():
                item = told.get()
            yield item
            if isinstance(item, Done):
                return
    finally:
        stop.set()
