"""OTLP/HTTP receiver: ``POST /v1/metrics``, protobuf or JSON, plain or gzipped, into a :class:`telemetry.otlp_store.RequestStore`.

Answers as https://opentelemetry.io/docs/specs/otlp/#otlphttp has them: 200 once the request is on the disk, with ``partialSuccess`` for
points that are malformed, too old or too far ahead; 400 malformed, 401 wrong token, 404, 405, 411, 413 too big, 415 another content type or
encoding: the sender must not repeat these; 503 with ``Retry-After`` where the disk is full, the receiver is busy, or about to end.
"""

from __future__ import annotations

import hmac
import json
import logging
import threading
import time
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from telemetry.errors import InputError
from telemetry.otlp_store import FullError, RequestStore
from telemetry.readers.otlp import decode_request
from telemetry.readers.otlp_points import MALFORMED, request_points

LOG = logging.getLogger(__name__)
PROTOBUF, JSON = "application/x-protobuf", "application/json"
PATH = "/v1/metrics"
RETRY_AFTER_S = 30
INVALID_ARGUMENT, UNAVAILABLE = 3, 14  # google.rpc.Code
DISCARDED_BYTES = 2**28  # of one refused request; what is longer is cut off


@dataclass(frozen=True)
class Limits:
    """What the receiver allows.

    Attributes:
        max_request_mib: size of a request, as sent and unpacked.
        max_concurrent: requests at once; further ones are told to come back.
        idle_s: longest wait for a sender's next bytes.
    """

    max_request_mib: int = 16
    max_concurrent: int = 64
    idle_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_request_mib", "max_concurrent", "idle_s"):
            if not getattr(self, name) > 0:
                raise InputError(f"{getattr(self, name)}", where=name, allowed="more than 0")


class _RefusedError(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: int = INVALID_ARGUMENT) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Counts:
    """What has happened so far."""

    requests: int = 0
    points: int = 0
    rejected: int = 0
    refused: int = 0


class Receiver(ThreadingHTTPServer):
    """A server on ``(host, port)``; port 0 takes a free one. ``serve_forever`` in a thread, then :meth:`drain` and ``server_close``."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], store: RequestStore, limits: Limits | None = None, token: str | None = None) -> None:
        self.store, self.limits, self.token = store, limits or Limits(), token
        self.counts = Counts()
        self.closing = False
        self._slots = threading.BoundedSemaphore(self.limits.max_concurrent)
        self._busy, self._idle = 0, threading.Condition()
        super().__init__(address, _Handler)

    def enter(self) -> bool:
        """Take a place among the requests at once; False if there is none or the receiver is about to end."""
        if self.closing or not self._slots.acquire(blocking=False):
            return False
        with self._idle:
            self._busy += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()
        self._slots.release()

    def drain(self, longest_s: float = 10.0) -> None:
        """Take no more requests, and wait for those that are being stored."""
        self.closing = True
        with self._idle:
            self._idle.wait_for(lambda: self._busy == 0, longest_s)

    def count(self, **more: int) -> None:
        """Add to :attr:`counts`."""
        with self._idle:
            for name, number in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + number)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A sender that hangs up is no error of ours."""
        LOG.debug("a connection of %s broke off", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: Receiver
    protocol_version = "HTTP/1.1"
    server_version = "joulewise"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.limits.idle_s)

    def do_POST(self) -> None:
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        entered = self.server.enter()
        try:
            if not entered:
                raise _RefusedError(503, "busy, or about to end", UNAVAILABLE)
            self._check(kind)
            self._answer(200, kind, self._store(kind))
        except _RefusedError as error:
            self.server.count(refused=1)
            # What is left of the body would be taken for the next request.
            self.close_connection = True
            self._answer(error.status, kind, _status(kind, error.code, error.message))
        finally:
            if entered:
                self.server.leave()

    def do_GET(self) -> None:
        """Any other method."""
        self.close_connection = True
        self._answer(405 if self.path == PATH else 404, JSON, _status(JSON, INVALID_ARGUMENT, f"POST {PATH}"))

    do_PUT = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def _check(self, kind: str) -> None:
        if self.path.partition("?")[0] != PATH:
            raise _RefusedError(404, f"no {self.path[:100]} here; allowed: POST {PATH}")
        given = self.headers.get("Authorization", "")
        if self.server.token is not None and not hmac.compare_digest(given.encode(), f"Bearer {self.server.token}".encode()):
            raise _RefusedError(401, "a bearer token is needed", 16)
        if kind not in (PROTOBUF, JSON):
            raise _RefusedError(415, f"content type '{kind[:100]}'; allowed: {PROTOBUF}, {JSON}")

    def _body(self) -> bytes:
        limit = self.server.limits.max_request_mib * 2**20
        length = self.headers.get("Content-Length", "")
        if "Transfer-Encoding" in self.headers or not (length.isascii() and length.isdigit()):
            raise _RefusedError(411, "a Content-Length is needed, and no transfer encoding")
        if int(length) > limit:
            self._discard(int(length))
            raise _RefusedError(413, f"{length} bytes; allowed: {limit}")
        data = self.rfile.read(int(length))
        if len(data) < int(length):
            raise _RefusedError(400, f"{len(data)} of {length} bytes came")
        encoding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding in ("identity", ""):
            return data
        if encoding != "gzip":
            raise _RefusedError(415, f"content encoding '{encoding[:100]}'; allowed: gzip, identity")
        unpack = zlib.decompressobj(wbits=31)
        try:
            whole = unpack.decompress(data, limit + 1)
        except zlib.error as error:
            raise _RefusedError(400, f"no gzip: {error}") from None
        if len(whole) > limit:
            raise _RefusedError(413, f"more than {limit} bytes when unpacked")
        if not unpack.eof or unpack.unused_data:
            raise _RefusedError(400, "truncated gzip, or more than one member")
        return whole

    def _discard(self, length: int) -> None:
        """Read past a body that is refused: a sender that meets a closed connection never reads why, and sends it again."""
        left = min(length, DISCARDED_BYTES)
        while left > 0 and (read := len(self.rfile.read(min(left, 2**16)))):
            left -= read

    def _request(self, kind: str) -> dict[str, Any]:
        body = self._body()
        if kind == PROTOBUF:
            try:
                request = decode_request(body)
            except InputError as error:
                raise _RefusedError(415, f"{error.problem}; allowed: {JSON}") from None
            if request is None:
                raise _RefusedError(400, "no protobuf ExportMetricsServiceRequest")
            return request
        try:
            request = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise _RefusedError(400, f"no JSON: {str(error)[:200]}") from None
        if not isinstance(request, dict):
            raise _RefusedError(400, "no JSON object")
        return {"resourceMetrics": [], **request}

    def _store(self, kind: str) -> bytes:
        """Store the request; body of the answer."""
        request = self._request(kind)
        try:
            found = request_points(request)
        except MALFORMED as error:
            raise _RefusedError(400, f"no ExportMetricsServiceRequest: {type(error).__name__} {str(error)[:100]}") from None
        old = ahead = 0
        times_s = found.times_s
        if times_s:
            line = json.dumps(request, separators=(",", ":")).encode()
            try:
                old, ahead = self.server.store.add(line, times_s, time.time())
            except (OSError, FullError) as error:
                LOG.warning("cannot store: %s", error)
                raise _RefusedError(503, f"cannot be stored: {error}", UNAVAILABLE) from None
        told = {"malformed": found.malformed, "too old": old, "too far ahead": ahead}
        rejected = sum(told.values())
        self.server.count(requests=1, points=len(times_s) - old - ahead, rejected=rejected)
        return _success(kind, rejected, ", ".join(f"{what}: {count}" for what, count in told.items() if count))

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind if kind in (PROTOBUF, JSON) else JSON)
        self.send_header("Content-Length", str(len(body)))
        if status == 503:
            self.send_header("Retry-After", str(RETRY_AFTER_S))
        if status == 401:
            self.send_header("WWW-Authenticate", "Bearer")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        LOG.debug(format, *args)


def _success(kind: str, rejected: int, message: str) -> bytes:
    """An ``ExportMetricsServiceResponse``."""
    if kind == JSON:
        partial = {"partialSuccess": {"rejectedDataPoints": str(rejected), "errorMessage": message}}
        return json.dumps(partial if rejected else {}).encode()
    if not rejected:
        return b""
    return _field(1, _number(1, rejected) + _field(2, message.encode()))


def _status(kind: str, code: int, message: str) -> bytes:
    """A ``google.rpc.Status``."""
    if kind == PROTOBUF:
        return _number(1, code) + _field(2, message.encode())
    return json.dumps({"code": code, "message": message}).encode()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _number(tag: int, number: int) -> bytes:
    return _varint(tag << 3) + _varint(number)


def _field(tag: int, data: bytes) -> bytes:
    return _varint(tag << 3 | 2) + _varint(len(data)) + data
