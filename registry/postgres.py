"""A tracking store in Postgres: reached with clear errors, and its tables made by one process at a time.

MLflow retries a refused connection for minutes and lets processes that start at once on an empty database crash each other. Here a
connection of our own is made first, and an advisory lock on it
(https://www.postgresql.org/docs/current/explicit-locking.html#ADVISORY-LOCKS) is held while MLflow makes or migrates its tables; the server
frees it when the holder ends, killed or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from telemetry.errors import InputError

SCHEME = "postgresql+psycopg2://"
_PREFIXES = ("postgresql://", "postgres://", SCHEME)
_SECRET_KEYS = ("password", "sslpassword")
# Any fixed number does, as long as all of us use the same.
_FIRST_START = 0x6A6F756C
_CONNECT_TIMEOUT_S = 10


def is_postgres(uri: str) -> bool:
    """Whether ``uri`` names a Postgres database."""
    return uri.startswith(_PREFIXES)


def with_driver(uri: str) -> str:
    """``uri`` with the driver named: without, SQLAlchemy 2.1 takes psycopg 3."""
    return SCHEME + uri.partition("://")[2]


def connect(uri: str) -> Any:
    """A psycopg2 connection with autocommit; passwords come from libpq's passfile, PGPASSFILE or ``~/.pgpass``.

    Raises:
        InputError: psycopg2 is missing, or the server refuses; the text names the host and never a password.
    """
    try:
        import psycopg2
    except ImportError as error:
        raise InputError("psycopg2 is not installed", where=place(uri), remedy="pip install -e '.[cloud]'") from error
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    options = url.translate_connect_args(username="user", database="dbname") | {"connect_timeout": _CONNECT_TIMEOUT_S} | dict(url.query)
    try:
        connection = psycopg2.connect(**options)
    except (psycopg2.OperationalError, psycopg2.ProgrammingError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"the tracking database does not answer: {text}", where=place(uri), remedy=_remedy(text)) from None
    connection.autocommit = True
    return connection


def place(uri: str) -> str:
    """``HOST:PORT/DATABASE`` of ``uri``, for messages."""
    from sqlalchemy.engine import make_url

    url = make_url(uri)
    return f"{url.host or 'local socket'}:{url.port or 5432}/{url.database or ''}"


def _remedy(text: str) -> str:
    if "password" in text:
        return "name the file with the password in registry.access.password_file, or use PGPASSFILE (mode 0600)"
    if "does not exist" in text:
        return "create the database and its user first; the tables are made by the first start"
    return "start the server, or correct host and port in registry.tracking_uri"


def refuse_secrets(uri: str) -> None:
    """Refuse a URI that holds a password: configurations are logged, and so are errors.

    Raises:
        InputError: it holds one; the text does not repeat it.
    """
    authority, _, query = uri.partition("://")[2].partition("?")
    user = authority.partition("/")[0].rpartition("@")[0]
    if ":" in user or any(pair.partition("=")[0] in _SECRET_KEYS for pair in query.split("&")):
        raise InputError(
            "a password in the URI",
            where="tracking_uri",
            allowed="SCHEME://USER@HOST/...",
            remedy="put it into a file and name that in registry.access.password_file, or use PGPASSFILE",
        )


@contextmanager
def alone(uri: str, key: int = _FIRST_START) -> Iterator[None]:
    """Hold the database's advisory lock ``key``. Raises as :func:`connect`."""
    connection = connect(uri)
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", (key,))
        yield
    finally:
        connection.close()
