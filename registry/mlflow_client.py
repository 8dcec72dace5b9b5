"""The one door to MLflow: quiet, and with absolute sqlite paths."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from mlflow.tracking import MlflowClient

from registry.postgres import alone, is_postgres, refuse_secrets, with_driver
from telemetry.errors import InputError

DEFAULT_URI = "sqlite:///mlflow.db"
_SQLITE = "sqlite:///"
_HTTP = ("http://", "https://")
_ANSWER_TIMEOUT_S = 20
_LOGGERS = ("mlflow", "alembic", "git")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and log lines of MLflow, alembic and SQLAlchemy to errors; restores what was set before."""
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in _LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


def sqlite_path(tracking_uri: str) -> Path | None:
    """Absolute path of the database file, or None when ``tracking_uri`` is not sqlite."""
    if not tracking_uri.startswith(_SQLITE):
        return None
    return Path(tracking_uri.removeprefix(_SQLITE)).absolute()


def resolve_uri(tracking_uri: str) -> str:
    """``tracking_uri`` made definite: an absolute sqlite path (a later change of folder cannot make a second database), Postgres' driver.

    Raises:
        InputError: for a scheme that this MLflow does not serve, or a password in the URI.
    """
    path = sqlite_path(tracking_uri)
    if path is not None:
        return f"{_SQLITE}{path}"
    refuse_secrets(tracking_uri)
    if is_postgres(tracking_uri):
        return with_driver(tracking_uri)
    if not tracking_uri.startswith(_HTTP):
        raise InputError(
            f"'{tracking_uri}'",
            where="tracking_uri",
            allowed="sqlite:///FILE.db, postgresql+psycopg2://USER@HOST/DATABASE, http(s)://SERVER",
            remedy=f"leave it out for the embedded default {DEFAULT_URI}",
        )
    return tracking_uri.rstrip("/")


def open_client(tracking_uri: str, *, must_exist: bool = True) -> MlflowClient:
    """A client of the tracking store and the model registry at ``tracking_uri``.

    Args:
        tracking_uri: see :func:`resolve_uri`.
        must_exist: refuse an sqlite file that is not there instead of creating an empty one.

    Raises:
        InputError: unknown scheme, no such database, or a server that does not answer.
    """
    uri = resolve_uri(tracking_uri)
    path = sqlite_path(uri)
    if must_exist and path is not None and not path.is_file():
        raise InputError(
            f"no model registry at {path}",
            where="tracking_uri",
            allowed="an existing database",
            remedy="run `python -m pipelines.train` first, or name another with --tracking-uri",
        )
    if uri.startswith(_HTTP):
        _answers(uri)
    with alone(uri) if is_postgres(uri) else nullcontext(), quiet():
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _answers(uri: str) -> None:
    """Ask the server once: MLflow itself would retry for minutes."""
    import requests

    try:
        requests.get(f"{uri}/health", timeout=_ANSWER_TIMEOUT_S).raise_for_status()
    except requests.RequestException as error:
        reason = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
        raise InputError(
            f"the MLflow server does not answer: {reason}", where=uri, remedy="start it, or correct registry.tracking_uri"
        ) from None
