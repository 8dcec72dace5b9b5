"""One file from an address to a path: resumed where it broke off, retried, bounded in size and time, and put in place in one step."""

from __future__ import annotations

import hashlib
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from telemetry.errors import InputError

SCHEMES = ("https", "http", "file")
RETRIED_STATUS = (408, 429, 500, 502, 503, 504)
CHUNK = 1 << 16
LONGEST_PAUSE_S = 60.0
AGENT = "joulewise-fetch"

Progress = Callable[[int, int], None]


class DownloadError(Exception):
    """A file did not come.

    Attributes:
        again: a further try may help, not before ``wait_s``.
        missing: the address has no such file.
        useless: what was brought so far cannot be continued.
    """

    def __init__(self, message: str, *, again: bool = False, missing: bool = False, useless: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.again, self.missing, self.useless, self.wait_s = again, missing, useless, wait_s


@dataclass(frozen=True)
class Limits:
    """How long and how much.

    Attributes:
        timeout_s: longest silence of the other side.
        file_timeout_s: longest time for one try at one file.
        tries: at most so many tries, the first included.
        pause_s: pause before the second try; it doubles each time, up to a minute.
        max_bytes: a larger file is refused.
    """

    timeout_s: float = 30.0
    file_timeout_s: float = 600.0
    tries: int = 5
    pause_s: float = 1.0
    max_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("timeout_s", "file_timeout_s", "tries", "max_bytes"):
            if not getattr(self, name) > 0:
                raise InputError(f"{getattr(self, name)}", where=name, allowed="above 0")
        if not self.pause_s >= 0:
            raise InputError(f"{self.pause_s}", where="pause_s", allowed="0 or more")


def download(
    address: str, target: Path, limits: Limits, progress: Progress = lambda done, total: None, sleep: Callable[[float], None] = time.sleep
) -> str:
    """Bring one file; what was brought before a cut lies in ``target.part`` and is continued, by this call or a later one.

    Args:
        address: ``https``, ``http`` or ``file``.
        target: replaced in one step when the whole file is there.
        progress: called with bytes there and bytes in all (0 = not known).

    Returns:
        SHA-256 of the file, hexadecimal.

    Raises:
        DownloadError: no such file, refused, or still failing after the last try.
    """
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(limits.tries):
        try:
            _continue(address, part, limits, progress)
            break
        except DownloadError as error:
            if error.useless or not error.again:
                _forget(part)
            if not error.again:
                raise
            if attempt == limits.tries - 1:
                raise DownloadError(f"{error} (after {limits.tries} tries; the next run resumes)") from error
            sleep(min(max(limits.pause_s * 2**attempt, error.wait_s), LONGEST_PAUSE_S))
    digest = sha256_of(part)
    os.replace(part, target)
    _forget(part)
    return digest


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def _note_path(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _note_of(part: Path, address: str) -> dict[str, Any]:
    """What is known of a part of this address; of another address it is worth nothing."""
    try:
        note = json.loads(_note_path(part).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) and note.get("address") == address else {}


@dataclass
class _Answer:
    """An open answer: bytes from ``offset`` on of a file of ``total`` bytes (0 = not known), and the file's mark (entity tag)."""

    body: IO[bytes]
    offset: int
    total: int
    mark: str


def _continue(address: str, part: Path, limits: Limits, progress: Progress) -> None:
    """One try: append to the part what is missing of it."""
    note = _note_of(part, address)
    have = part.stat().st_size if note and part.exists() else 0
    deadline = time.monotonic() + limits.file_timeout_s
    with _opened(address, have, str(note.get("mark", "")), limits) as answer:
        if answer.total > limits.max_bytes:
            raise DownloadError(f"{answer.total:,} bytes, allowed are {limits.max_bytes:,} (max_mib)")
        _note_path(part).write_text(json.dumps({"address": address, "mark": answer.mark}))
        with part.open("r+b" if answer.offset else "wb") as file:
            file.truncate(answer.offset)
            file.seek(answer.offset)
            done = answer.offset
            progress(done, answer.total)
            for block in _blocks(answer.body):
                done += len(block)
                if done > limits.max_bytes:
                    raise DownloadError(f"more than {limits.max_bytes:,} bytes (max_mib)")
                if answer.total and done > answer.total:
                    raise DownloadError(f"more than the {answer.total:,} bytes announced")
                file.write(block)
                progress(done, answer.total)
                if time.monotonic() > deadline:
                    raise DownloadError(f"not done after {limits.file_timeout_s:g} s", again=True)
            file.flush()
            os.fsync(file.fileno())
    if answer.total and done < answer.total:
        raise DownloadError(f"broke off after {done:,} of {answer.total:,} bytes", again=True)


def _blocks(body: IO[bytes]) -> Iterator[bytes]:
    while True:
        try:
            block = body.read1(CHUNK) if hasattr(body, "read1") else body.read(CHUNK)  # type: ignore[attr-defined]
        except (OSError, HTTPException) as error:
            raise DownloadError(f"broke off ({error or type(error).__name__})", again=True) from error
        if not block:
            return
        yield block


@contextmanager
def _opened(address: str, have: int, mark: str, limits: Limits) -> Iterator[_Answer]:
    parts = urlsplit(address)
    if parts.scheme not in SCHEMES:
        raise DownloadError(f"scheme '{parts.scheme}' refused; allowed: {', '.join(SCHEMES)}")
    if parts.scheme == "file":
        with _opened_file(parts.netloc, unquote(parts.path), have) as answer:
            yield answer
        return
    request = urllib.request.Request(address, headers={"User-Agent": AGENT, "Accept-Encoding": "identity"})  # noqa: S310 - checked above
    if have:
        request.add_header("Range", f"bytes={have}-")
        if mark:
            request.add_header("If-Range", mark)
    try:
        with _opener().open(request, timeout=limits.timeout_s) as response:
            yield _answer(response, have)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error, have) from error
    except urllib.error.URLError as error:
        raise DownloadError(f"cannot be reached ({error.reason})", again=not isinstance(error.reason, ValueError)) from error
    except (TimeoutError, ConnectionError, HTTPException) as error:
        raise DownloadError(f"broke off ({error or type(error).__name__})", again=True) from error


@contextmanager
def _opened_file(host: str, name: str, have: int) -> Iterator[_Answer]:
    if host not in ("", "localhost"):
        raise DownloadError(f"file on host '{host}' refused")
    try:
        with Path(name).open("rb") as file:
            total = os.fstat(file.fileno()).st_size
            offset = have if have <= total else 0
            if offset:
                file.seek(offset)
            yield _Answer(file, offset, total, "")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise DownloadError("no such file", missing=True) from error
    except PermissionError as error:
        raise DownloadError(error.strerror or "not readable") from error


def _answer(response: Any, have: int) -> _Answer:
    headers: Message = response.headers
    length = _number(headers.get("Content-Length"))
    mark = headers.get("ETag") or ""
    mark = "" if mark.startswith("W/") else mark
    if response.status == 206:
        begin, total = _content_range(headers.get("Content-Range", ""))
        if begin != have:
            raise DownloadError(f"bytes from {begin} although {have} were asked for")
        return _Answer(response, have, total, mark)
    if response.status != 200:
        raise DownloadError(f"status {response.status}")
    if headers.get_content_type() == "text/html":
        raise DownloadError("a web page, not the file")
    return _Answer(response, 0, length, mark)


def _content_range(text: str) -> tuple[int, int]:
    """First byte and length of the whole (0 = not known) of ``bytes 5-9/10``."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    begin = span.partition("-")[0]
    if unit != "bytes" or not begin.isdigit():
        raise DownloadError(f"Content-Range '{text}' not understood")
    return int(begin), _number(total)


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _refusal(error: urllib.error.HTTPError, have: int) -> DownloadError:
    if error.code in (404, 410):
        return DownloadError(f"status {error.code} {error.reason}", missing=True)
    if error.code == 416 and have:
        # The part is as long as the file, or longer: it cannot be told which, so it is brought anew.
        return DownloadError(f"status 416 from byte {have}", again=True, useless=True)
    wait = error.headers.get("Retry-After", "")
    return DownloadError(
        f"status {error.code} {error.reason}", again=error.code in RETRIED_STATUS, wait_s=float(wait) if wait.isdigit() else 0.0
    )


class _SameScheme(urllib.request.HTTPRedirectHandler):
    """Follows redirects within one scheme only: never from https to http, or to a local file."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if before != after:
            raise DownloadError(f"redirect from {before} to {after or 'nowhere'} refused")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _SameScheme(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener
