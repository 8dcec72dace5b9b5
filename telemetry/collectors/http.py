"""HTTP for collectors: time-outs, retries where the fault may pass, credentials from files, certificates always checked.

Retried with exponential back-off and jitter: no connection, a time-out, a broken answer, status 429 and 5xx; ``Retry-After`` is kept to
(RFC 9110, section 10.2.3). Never retried: any other status, and a certificate that does not fit. A redirect is refused, since it would
carry the request, and perhaps its credentials, to an address that nobody configured.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from telemetry.collectors.base import UnavailableError
from telemetry.errors import InputError

LOG = logging.getLogger(__name__)
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
# A server that asks for more patience than this is not waited for: the next run is.
LONGEST_ASKED_S = 600.0


@dataclass(frozen=True)
class HttpConfig:
    """How a system is spoken to.

    Attributes:
        timeout_s: longest wait for the connection, and for the next bytes of the answer.
        attempts: tries in all.
        token_file: file with a bearer token; read anew for every request, since cluster tokens are rotated.
        user, password_file: basic authentication.
        ca_file: certificates to trust instead of the system's.
    """

    timeout_s: float = 60.0
    attempts: int = 6
    token_file: str | None = None
    user: str | None = None
    password_file: str | None = None
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if not self.timeout_s > 0:
            raise InputError(f"{self.timeout_s}", where="timeout_s", allowed="more than 0 seconds")
        if self.attempts < 1:
            raise InputError(f"{self.attempts}", where="attempts", allowed="1 or more")
        if (self.user is None) != (self.password_file is None):
            raise InputError("user without password_file, or the other way round", where="user", remedy="give both")
        if self.token_file is not None and self.user is not None:
            raise InputError("both a token and a user", where="token_file", remedy="give one of them")
        for name in ("token_file", "password_file", "ca_file"):
            path = getattr(self, name)
            if path is not None and not Path(path).is_file():
                raise InputError(f"'{path}' is no file", where=name, remedy="check the path and its permissions")


class _Credentials(AuthBase):
    """Token or user as configured; without either, nothing at all: requests would look into ~/.netrc."""

    def __init__(self, config: HttpConfig) -> None:
        self.config = config

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        config = self.config
        if config.token_file is not None:
            request.headers["Authorization"] = f"Bearer {read_secret(config.token_file)}"
        elif config.user is not None and config.password_file is not None:
            return requests.auth.HTTPBasicAuth(config.user.encode(), read_secret(config.password_file).encode())(request)
        return request


def read_secret(path: str) -> str:
    """One line of a file, without the line end; it is in no message.

    Raises:
        InputError: unreadable, empty, or more than one line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read ({type(error).__name__})", where=path, remedy="check the path and its permissions") from None
    if not text or not text.isprintable() or " " in text:
        raise InputError("is empty, or more than one word", where=path, allowed="a file that holds the secret alone")
    return text


def checked_url(url: str, where: str) -> str:
    """The address without a slash at its end.

    Raises:
        InputError: not http(s), or with credentials, a query or a fragment in it.
    """
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise InputError("credentials in the address", where=where, remedy="put them into files: token_file, or user and password_file")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise InputError(f"'{url}'", where=where, allowed="an address such as https://host:9090/prefix")
    return url.rstrip("/")


def send(
    method: str,
    url: str,
    config: HttpConfig,
    *,
    data: Mapping[str, str] | None = None,
    params: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> requests.Response:
    """The answer, whatever its status below 500 but 429; its body is read.

    Raises:
        UnavailableError: unreachable, too slow, or 429 and 5xx at every attempt.
        InputError: a certificate that does not fit, a redirect, or a secret that cannot be read.
    """
    if url.startswith("http://") and (config.token_file or config.user) and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
        LOG.warning("%s: credentials are sent in the clear; use https", _place(url))
    problem = ""
    for attempt in range(config.attempts):
        asked: float | None = None
        try:
            answer = _once(method, url, config, data, params, headers)
            if answer.status_code != 429 and answer.status_code < 500:
                return answer
            problem, asked = f"status {answer.status_code} {answer.reason}: {_excerpt(answer)}", _retry_after(answer)
        except requests.exceptions.SSLError as error:
            raise InputError(
                f"the certificate is not accepted ({_reason(error)})", where=_place(url), remedy="give the CA that signed it as ca_file"
            ) from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            problem = f"unreachable ({_reason(error)})"
        except requests.exceptions.ContentDecodingError as error:
            problem = f"a broken answer ({_reason(error)})"
        except requests.RequestException as error:
            raise InputError(f"cannot be asked ({_reason(error)})", where=_place(url)) from None
        if asked is not None and asked > LONGEST_ASKED_S:
            problem += f"; asks to wait for {asked:.0f} s"
            break
        if attempt + 1 < config.attempts:
            wait_s = _wait_s(attempt, asked)
            LOG.warning("%s: %s; attempt %d of %d, next in %.1f s", _place(url), problem, attempt + 1, config.attempts, wait_s)
            time.sleep(wait_s)
    raise UnavailableError(
        problem, where=_place(url), remedy="is it up, and can it be reached from here? the same command goes on where it was"
    )


def _once(
    method: str,
    url: str,
    config: HttpConfig,
    data: Mapping[str, str] | None,
    params: Mapping[str, str] | None,
    headers: Mapping[str, str] | None,
) -> requests.Response:
    with requests.Session() as session:
        # As an argument, since in the session REQUESTS_CA_BUNDLE would win over it.
        answer = session.request(
            method, url, data=data, params=params, headers=headers, auth=_Credentials(config), timeout=config.timeout_s,
            verify=config.ca_file or True, allow_redirects=False,
        )  # fmt: skip
    if answer.is_redirect:
        target = _place(answer.headers.get("Location", ""))
        raise InputError(f"redirects to '{target}'", where=_place(url), remedy="give the address that it redirects to")
    return answer


def _wait_s(attempt: int, asked: float | None) -> float:
    """Half to the whole of 1, 2, 4 ... seconds, so that many clients do not come back at once; never less than asked."""
    own = min(FIRST_WAIT_S * 2.0**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1.0)
    return max(own, asked or 0.0)


def _retry_after(answer: requests.Response) -> float | None:
    """Seconds that the answer asks to wait: a number, or until a date."""
    text = answer.headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _place(url: str) -> str:
    """An address as messages give it: without query."""
    return url.split("?", 1)[0]


def _reason(error: Exception) -> str:
    """What went wrong, without the whole chain of wrappers."""
    cause: object = error
    while (inner := getattr(cause, "reason", None) or next(iter(getattr(cause, "args", ())), None)) and isinstance(inner, Exception):
        cause = inner
    text = str(cause).rpartition(": ")[2] or type(cause).__name__
    return text[:200]


def _excerpt(answer: requests.Response) -> str:
    text = " ".join(answer.text.split())
    return text[:200]
