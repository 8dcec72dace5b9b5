"""Azure Monitor by its metrics REST API: answers of ``GET RESOURCE/providers/microsoft.insights/metrics``, one a line.

Source: "Metrics - List" of the Azure REST reference (api-version 2023-10-01): at most 20 metric names a request.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from telemetry.collectors.base import UnavailableError
from telemetry.errors import InputError

API_VERSION = "2023-10-01"
NAMES_PER_REQUEST = 20
GRAINS = ("PT1M", "PT5M", "PT15M", "PT30M", "PT1H", "PT6H", "PT12H", "P1D")
PASSING = (408, 429, 500, 502, 503, 504)
MAX_BYTES = 64 * 2**20
MAX_WAIT_S = 60.0


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another host."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass(frozen=True)
class AzureMonitorCollector:
    """One request per resource and 20 metric names; faults that may pass (throttling, 5xx, no connection) are asked again with back-off.

    Attributes:
        resources: resource ids, ``/subscriptions/.../providers/Microsoft.Compute/virtualMachines/NAME``.
        metrics: names as in "Azure Monitor supported metrics"; all resources must have them.
        token_file: holds a bearer token, read anew for every request, so that whoever renews it only writes the file
            (``az account get-access-token --resource https://management.azure.com --query accessToken -o tsv``).
        split: dimensions to split by, such as InstanceId and DeviceId for GPUs.
        interval: length of a period; Azure keeps one-minute periods for 93 days.
        endpoint: of the cloud; plain http is for this machine alone.
        timeout_s: for one answer.
        attempts: requests in all before giving up.
    """

    resources: tuple[str, ...]
    metrics: tuple[str, ...]
    token_file: str
    split: tuple[str, ...] = ()
    interval: str = "PT5M"
    endpoint: str = "https://management.azure.com"
    timeout_s: float = 30.0
    attempts: int = 5

    tested: ClassVar[str] = "a server of the test that speaks its REST interface"
    reader: ClassVar[str] = "azure_monitor"
    suffix: ClassVar[str] = "jsonl"

    def __post_init__(self) -> None:
        for name in ("resources", "metrics", "token_file"):
            if not getattr(self, name):
                raise InputError("none", where=f"collector.{name}", allowed="at least one" if name != "token_file" else "a file")
        wrong = [text for text in self.resources if not text.startswith("/") or "/providers/" not in text.lower()]
        if wrong:
            raise InputError(f"{wrong[0]!r}", where="collector.resources", allowed="/subscriptions/ID/resourceGroups/GROUP/providers/...")
        if self.interval not in GRAINS:
            raise InputError(f"{self.interval!r}", where="collector.interval", allowed=", ".join(GRAINS))
        url = urllib.parse.urlsplit(self.endpoint)
        if url.scheme != "https" and not (url.scheme == "http" and url.hostname in ("127.0.0.1", "localhost", "::1")):
            raise InputError(f"{self.endpoint!r}", where="collector.endpoint", allowed="an https address: the token goes with the request")
        if not self.timeout_s > 0 or self.attempts < 1:
            raise InputError(f"timeout_s {self.timeout_s}, attempts {self.attempts}", where="collector", allowed="more than 0, from 1")

    def fetch(self, start: pd.Timestamp, end: pd.Timestamp) -> bytes:
        """Answers of all resources, one a line: periods that begin at ``start <= time < end``.

        Raises:
            InputError: no token, refused, unreachable, or an answer that is no JSON object; names the resource.
        """
        return b"".join(
            json.dumps(self._answer(resource, self.metrics[first : first + NAMES_PER_REQUEST], start, end)).encode() + b"\n"
            for resource in self.resources
            for first in range(0, len(self.metrics), NAMES_PER_REQUEST)
        )

    def _answer(self, resource: str, names: tuple[str, ...], start: pd.Timestamp, end: pd.Timestamp) -> dict[str, Any]:
        query = {
            "api-version": API_VERSION,
            "timespan": f"{_iso(start)}/{_iso(end)}",
            "interval": self.interval,
            # A comma in a name is written %2 by the API's rule.
            "metricnames": ",".join(name.replace(",", "%2") for name in names),
            "aggregation": "Average,Total,Count",
        }
        if self.split:
            query["$filter"] = " and ".join(f"{name} eq '*'" for name in self.split)
        path = urllib.parse.quote(resource.rstrip("/"), safe="/")
        where = f"{self.endpoint}{path}"
        data = self._got(f"{where}/providers/microsoft.insights/metrics?{urllib.parse.urlencode(query)}", where)
        try:
            answer = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise InputError("the answer is no JSON", where=where, remedy="is collector.endpoint Azure's?") from error
        if not isinstance(answer, dict) or not isinstance(answer.get("value"), list):
            raise InputError("the answer has no 'value'", where=where, remedy="is collector.endpoint Azure's?")
        return answer

    def _got(self, url: str, where: str) -> bytes:
        opener = urllib.request.build_opener(_NoRedirect)
        told = ""
        for attempt in range(self.attempts):
            request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self._token()}"})  # noqa: S310  scheme checked above
            try:
                with opener.open(request, timeout=self.timeout_s) as answer:
                    data = answer.read(MAX_BYTES + 1)
            except urllib.error.HTTPError as error:
                with error:
                    told = _refusal(error)
                    if error.code not in PASSING:
                        raise InputError(told, where=where, remedy=_remedy(error.code)) from error
                    wait_s = _wait_s(error.headers.get("Retry-After"), attempt)
            except (OSError, ValueError) as error:
                told, wait_s = f"unreachable ({getattr(error, 'reason', error)})", _wait_s(None, attempt)
            else:
                if len(data) > MAX_BYTES:
                    raise InputError(f"an answer of more than {MAX_BYTES} bytes", where=where, remedy="ask for shorter windows")
                return data
            if attempt + 1 < self.attempts:
                time.sleep(wait_s)
        raise UnavailableError(f"{told} after {self.attempts} attempts", where=where, remedy="check the way to it, or repeat later")

    def _token(self) -> str:
        try:
            token = Path(self.token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError("the token cannot be read", where=self.token_file, remedy="write the access token alone into it") from error
        if not token or any(character.isspace() for character in token):
            raise InputError("no token, or more than one", where=self.token_file, remedy="write the access token alone into it")
        return token


def _iso(moment: pd.Timestamp) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _refusal(error: urllib.error.HTTPError) -> str:
    """Status and Azure's error code; its message may name more than a log should hold."""
    try:
        code = str(json.loads(error.read(65_536))["error"]["code"])[:80]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        code = ""
    return f"HTTP {error.code} {code}".strip()


def _remedy(status: int) -> str:
    if status == 401:
        return "renew the token in collector.token_file"
    if status == 403:
        return "give the token's identity the role Monitoring Reader on the resource"
    if status == 404:
        return "check the resource id"
    return "check collector.metrics, collector.split and collector.interval against the resource's supported metrics"


def _wait_s(retry_after: str | None, attempt: int) -> float:
    """Seconds before the next attempt: what the service asks for, else 0.5, 1, 2 ..."""
    asked = float(retry_after) if retry_after and retry_after.isdigit() else 0.5 * 2**attempt
    return min(asked, MAX_WAIT_S)
