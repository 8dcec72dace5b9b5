"""A lake in an S3 bucket: immutable objects, and a manifest that is put on the condition that it is the one that was read.

Amazon S3 and its likes compare ETags themselves (``If-Match``, ``If-None-Match`` of PutObject), so of two writers the second is refused and
has changed nothing. Writers cannot keep each other out before that: each writes below names of its own, and objects that no manifest names
are removed when they are a day old. Reads go through Arrow's S3 client (column chunks by range), all else through boto3; both with the
credentials of boto3's chain (environment, profile, role): none are in the configuration.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyarrow import fs

from telemetry.errors import InputError
from telemetry.storage import MISSING, Changed

_URL = re.compile(r"s3:/{1,2}([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_GONE = ("NoSuchKey", "404", "NotFound")
# 412: another ETag; 409: another conditional put of the same object was under way.
_CHANGED = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_DELETE_AT_ONCE = 1000


class ObjectStorage:
    """``s3://bucket/prefix``; see the module, and ``telemetry.storage.Storage`` for the verbs.

    Args:
        endpoint_url: of an S3 that is not Amazon's.
        anon: sign nothing; for reading.

    Raises:
        InputError: the extra ``cloud`` is not installed; (every method) no credentials, no such bucket, or no permission.
        OSError: (every method) the service does not answer or fails.
    """

    def __init__(self, bucket: str, prefix: str, *, endpoint_url: str | None = None, anon: bool = False) -> None:
        try:
            import boto3
            from botocore import UNSIGNED
            from botocore.config import Config
        except ImportError as error:
            raise InputError("boto3 is not installed", where="lake.root", remedy="pip install -e '.[cloud]'") from error
        self.bucket, self.prefix, self._endpoint_url, self._anon = bucket, prefix.strip("/"), endpoint_url, anon
        self._session = boto3.Session()
        options: dict[str, Any] = {"retries": {"mode": "standard", "max_attempts": 5}, "request_checksum_calculation": "when_required"}
        if anon:
            options["signature_version"] = UNSIGNED
        self._region = self._session.region_name or "us-east-1"
        self._client = self._session.client("s3", endpoint_url=endpoint_url, region_name=self._region, config=Config(**options))

    @classmethod
    def of_url(cls, url: str, *, endpoint_url: str | None = None, anon: bool = False) -> ObjectStorage:
        """The storage of ``s3://bucket/prefix``.

        Raises:
            InputError: another address, or the extra ``cloud`` is not installed.
        """
        match = _URL.fullmatch(url)
        if match is None:
            raise InputError(f"'{url}'", where="lake.root", allowed="s3://bucket/prefix")
        return cls(match[1], match[2] or "", endpoint_url=endpoint_url, anon=anon)

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def place(self, key: str) -> str:
        return f"s3://{self.bucket}/{self._key(key)}"

    @contextlib.contextmanager
    def _told(self, key: str) -> Iterator[None]:
        """Errors of the service as ours."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

        try:
            yield
        except NoCredentialsError as error:
            raise InputError(
                "no credentials",
                where=self.place(key),
                remedy="configure the vendor's chain (profile, role), or lake.anon=true for reading",
            ) from error
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("NoSuchBucket", "AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
                raise InputError(code, where=self.place(key), remedy="check the bucket, its policy and your credentials") from error
            raise OSError(f"{self.place(key)}: {code}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise OSError(f"{self.place(key)}: {error}") from error

    def read(self, key: str) -> tuple[bytes, str]:
        from botocore.exceptions import ClientError

        with self._told(key):
            try:
                answer = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            except ClientError as error:
                if error.response.get("Error", {}).get("Code") in _GONE:
                    return b"", MISSING
                raise
            return answer["Body"].read(), answer["ETag"]

    def replace(self, key: str, data: bytes, tag: str | None = None) -> None:
        from botocore.exceptions import ClientError

        condition = {} if tag is None else {"IfNoneMatch": "*"} if tag == MISSING else {"IfMatch": tag}
        with self._told(key):
            try:
                self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **condition)
            except ClientError as error:
                if condition and error.response.get("Error", {}).get("Code") in (*_CHANGED, *_GONE):
                    # A put whose answer was lost is tried again by the client, and then refused by its own first try.
                    if self.read(key)[0] == data:
                        return
                    raise Changed(key) from error
                raise

    def put(self, files: Mapping[str, Path]) -> None:
        for key, path in files.items():
            with self._told(key):
                self._client.upload_file(str(path), self.bucket, self._key(key))

    def keys(self, prefix: str, older_than_s: float = 0.0) -> Iterator[str]:
        with self._told(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(prefix))
            for page in pages:
                for found in page.get("Contents", ()):
                    if time.time() - found["LastModified"].timestamp() >= older_than_s:
                        yield found["Key"][len(self._key("")) :]

    def delete(self, keys: Iterable[str]) -> None:
        names = [{"Key": self._key(key)} for key in keys]
        for first in range(0, len(names), _DELETE_AT_ONCE):
            with self._told(""):
                self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": names[first : first + _DELETE_AT_ONCE], "Quiet": True})

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def version(self, digest: str) -> str:
        return f"{digest[:16]}-{uuid.uuid4().hex[:8]}"

    def scratch(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="joulewise-lake-"))

    def arrow(self, key: str) -> tuple[fs.FileSystem | None, str]:
        return self._filesystem(), f"{self.bucket}/{self._key(key)}"

    def _filesystem(self) -> fs.S3FileSystem:
        """Made anew for each reading, so that it has the credentials of now."""
        scheme, _, host = (self._endpoint_url or "").rpartition("://")
        options: dict[str, Any] = {"region": self._region}
        if host:
            options |= {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"}
        if self._anon:
            return fs.S3FileSystem(anonymous=True, **options)
        found = self._session.get_credentials()
        if found is None:
            raise InputError(
                "no credentials", where=self.place(""), remedy="configure the vendor's chain (profile, role), or lake.anon=true"
            )
        now = found.get_frozen_credentials()
        return fs.S3FileSystem(access_key=now.access_key, secret_key=now.secret_key, session_token=now.token, **options)
