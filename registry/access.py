"""How a registry that is a server is reached: credentials from files, and the environment variables that MLflow and boto3 read.

MLflow takes its HTTP credentials and the S3 endpoint from the environment only, boto3 the path of its credentials, and libpq that of its
passfile. The variables are worked out here and set by whoever starts the process (``pipelines.cli``).
"""

from __future__ import annotations

import atexit
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from registry.postgres import is_postgres
from telemetry.errors import InputError


@dataclass(frozen=True)
class Access:
    """What is needed beside the URIs; never a secret itself.

    Attributes:
        username: for an MLflow server over HTTP with a login; Postgres' stands in the URI.
        password_file: file with the password of the database or of the HTTP login (without ``username``: a bearer token).
        s3_endpoint: URL of an S3-compatible store; None for AWS.
        s3_credentials_file: an AWS shared credentials file; None leaves it to boto3's own chain.
        state_folder: folder shared by all promoters, for the audit record.
    """

    username: str | None = None
    password_file: str | None = None
    s3_endpoint: str | None = None
    s3_credentials_file: str | None = None
    state_folder: str | None = None

    @property
    def state(self) -> Path | None:
        """``state_folder`` as a path."""
        return None if self.state_folder is None else Path(self.state_folder)


def variables(access: Access, tracking_uri: str) -> dict[str, str]:
    """Environment variables to set before MLflow is used.

    A Postgres password becomes a private passfile that is removed when this process ends: libpq would not read the file itself where
    others may, as mounted secrets often are.

    Raises:
        InputError: a file that cannot be read or is empty.
    """
    found: dict[str, str] = {}
    if access.s3_endpoint:
        found["MLFLOW_S3_ENDPOINT_URL"] = access.s3_endpoint
    if access.s3_credentials_file:
        _read(access.s3_credentials_file, "s3_credentials_file")
        found["AWS_SHARED_CREDENTIALS_FILE"] = str(Path(access.s3_credentials_file).absolute())
    if access.username and not is_postgres(tracking_uri):
        found["MLFLOW_TRACKING_USERNAME"] = access.username
    if access.password_file:
        password = _read(access.password_file, "password_file").rstrip("\r\n")
        if is_postgres(tracking_uri):
            found["PGPASSFILE"] = str(_passfile(password))
        else:
            found["MLFLOW_TRACKING_PASSWORD" if access.username else "MLFLOW_TRACKING_TOKEN"] = password
    return found


def _read(file: str, key: str) -> str:
    try:
        content = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise InputError(f"cannot be read: {reason}", where=f"registry.access.{key} {file}", remedy="name a readable file") from None
    if not content.strip():
        raise InputError("is empty", where=f"registry.access.{key} {file}", remedy="write the credential into it")
    return content


def _passfile(password: str) -> Path:
    """A passfile (https://www.postgresql.org/docs/current/libpq-pgpass.html) readable by this user only."""
    handle, name = tempfile.mkstemp(prefix="joulewise-pgpass-")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write("*:*:*:*:" + password.replace("\\", "\\\\").replace(":", "\\:") + "\n")
    owner = os.getpid()

    def remove() -> None:
        if os.getpid() == owner:  # not in a forked child
            Path(name).unlink(missing_ok=True)

    atexit.register(remove)
    return Path(name)
