"""Where the pieces of a long computation run: in this process, in several on this machine, or on a Ray cluster.

An engine maps one function over tasks; results come back as they finish, with the number of their task. Tasks are made only when a worker
is about to take them, so that no more than twice as many exist as there are workers. All engines give the same results.
"""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from telemetry.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
KINDS = ("local", "ray")


class Engine(Protocol):
    """Runs tasks; a context that lets its workers go at the end."""

    workers: int

    def map(self, function: Callable[[T, Any], R], tasks: Iterable[T], shared: Any = None) -> Iterator[tuple[int, R]]:
        """``(k, function(task_k, shared))`` for each task, in the order in which they finish; an error of a task is raised here."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class Serial(AbstractContextManager):
    """Everything in this process, one task after the other."""

    workers = 1

    def map(self, function: Callable[[T, Any], R], tasks: Iterable[T], shared: Any = None) -> Iterator[tuple[int, R]]:
        for number, task in enumerate(tasks):
            yield number, function(task, shared)

    def __exit__(self, *_: object) -> None:
        """Nothing to let go."""


class Processes(AbstractContextManager):
    """Processes on this machine, started at the first map.

    Args:
        workers: processes.
        initializer: called once in each of them.
    """

    def __init__(self, workers: int, initializer: Callable[[], None] | None = None) -> None:
        self.workers = workers
        self._initializer = initializer
        self._pool: ProcessPoolExecutor | None = None

    def map(self, function: Callable[[T, Any], R], tasks: Iterable[T], shared: Any = None) -> Iterator[tuple[int, R]]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=self._initializer)
        packed, pool = pickle.dumps(shared), self._pool
        pending: dict[Any, int] = {}
        try:
            for number, task in enumerate(tasks):
                pending[pool.submit(_call, function, task, packed)] = number
                if len(pending) >= 2 * self.workers:
                    yield from _finished(pending)
            while pending:
                yield from _finished(pending)
        except BrokenProcessPool as error:
            self._pool = None  # the next map starts another
            raise RuntimeError("a worker process ended before its task: out of memory, or killed") from error
        finally:
            for future in pending:
                future.cancel()

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None


def _finished(pending: dict[Any, int]) -> Iterator[tuple[int, Any]]:
    done, _ = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        yield pending.pop(future), future.result()


_unpacked: tuple[bytes, Any] = (b"", None)  # of this worker process: what the last map shared


def _call(function: Callable[[T, Any], R], task: T, packed: bytes) -> R:
    global _unpacked
    if _unpacked[0] != packed:
        _unpacked = (packed, pickle.loads(packed))  # noqa: S301 - bytes that the parent process of this pool has just packed
    return function(task, _unpacked[1])


def make_engine(kind: str = "local", workers: int = 1, address: str | None = None, initializer: Callable[[], None] | None = None) -> Engine:
    """Engine by name.

    Args:
        kind: ``local`` or ``ray``.
        workers: tasks at a time; one worker of ``local`` is this process.
        address: of a running Ray cluster; None starts one on this machine.
        initializer: called once in each worker process of ``local``.

    Raises:
        InputError: another kind, no workers, or Ray is not installed.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r}", where="engine.kind", allowed=", ".join(KINDS))
    if workers < 1:
        raise InputError(f"{workers}", where="engine.workers", allowed="at least 1")
    if kind == "ray":
        from models.engine_ray import RayEngine

        return RayEngine(workers, address)
    return Serial() if workers == 1 else Processes(workers, initializer)
