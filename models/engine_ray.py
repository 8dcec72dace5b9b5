"""The engine over a Ray cluster; the only module that imports ray, and only when such an engine is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from telemetry.errors import InputError

T = TypeVar("T")
R = TypeVar("R")
ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ("models", "telemetry", "envs", "registry", "pipelines")  # packages that a worker imports
RETRIES = 3  # of a task whose worker or node died; what a task itself raises is not tried again


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "ray is not installed", where="engine.kind", allowed="local without it", remedy="pip install 'joulewise[ray]'"
        ) from error
    return ray


class RayEngine(AbstractContextManager):
    """Tasks on a Ray cluster, one CPU each. Other machines get these packages by value, and all data through Ray's object store.

    A task whose worker or node dies runs again elsewhere, up to ``RETRIES`` times; tasks are pure, so that nothing shows it in the results.

    Args:
        workers: tasks at a time over all machines.
        address: of the cluster (``auto``, ``ray://host:10001``, ``host:6379``); None starts one with ``workers`` CPUs on this machine.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self.workers, self.address = workers, address
        _ray()

    def __enter__(self) -> RayEngine:
        ray = _ray()
        if self.address is None:  # its workers see the packages where this process does
            where: dict[str, Any] = {"num_cpus": self.workers, "include_dashboard": False}
        else:
            shipped = {"py_modules": [str(ROOT / name) for name in SHIPPED], "env_vars": {"OMP_NUM_THREADS": "1"}}
            where = {"address": self.address, "runtime_env": shipped}
        try:
            ray.init(**where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise InputError(
                f"no Ray at {self.address!r}: {str(error).splitlines()[0]}",
                where="engine.address",
                remedy="start one with: ray start --head",
            ) from error
        return self

    def map(self, function: Callable[[T, Any], R], tasks: Iterable[T], shared: Any = None) -> Iterator[tuple[int, R]]:
        ray = _ray()
        remote, handle = ray.remote(num_cpus=1, max_retries=RETRIES)(function), ray.put(shared)
        pending: dict[Any, int] = {}
        try:
            for number, task in enumerate(tasks):
                pending[remote.remote(task, handle)] = number
                if len(pending) >= 2 * self.workers:
                    yield from self._finished(pending)
            while pending:
                yield from self._finished(pending)
        finally:
            for reference in pending:
                ray.cancel(reference)

    @staticmethod
    def _finished(pending: dict[Any, int]) -> Iterator[tuple[int, Any]]:
        ray = _ray()
        done, _ = ray.wait(list(pending), num_returns=1)
        for reference in done:
            number = pending.pop(reference)
            try:
                result = ray.get(reference)
            except ray.exceptions.RayTaskError as error:  # what the task raised, as in any other engine
                raise (error.cause or error) from error
            except ray.exceptions.RayError as error:
                raise InputError(
                    f"task {number} was lost {RETRIES + 1} times: {type(error).__name__}",
                    where="engine=ray",
                    remedy="the workers die on it: more memory a worker, fewer engine.workers; the same command goes on where it can",
                ) from error
            yield number, result

    def __exit__(self, *_: object) -> None:
        _ray().shutdown()
