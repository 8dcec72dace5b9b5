"""How the runtime learns of a promotion: it polls the aliases, and may be woken by a webhook of the MLflow server.

MLflow sends webhooks (``model_version_alias.created``) only for changes that go through its server, only to https addresses that are public
unless its operator allows private ones, and without telling of losses: a webhook here wakes, the poll says what is true. The signature is
HMAC-SHA256 over ``delivery id . timestamp . body`` (``mlflow.webhooks.delivery``).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.alias_moves import current_aliases
from telemetry.errors import InputError

MAX_AGE_S = 300.0


@dataclass(frozen=True)
class AliasChange:
    """One alias of a registered model that points elsewhere; None where it did not or does not exist."""

    name: str
    alias: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class Polled:
    """What changed since the token that was given, and the token for the next poll.

    ``problem`` is empty, or says for which models the registry did not answer: their part of the token, the last good state, stays.
    """

    changes: tuple[AliasChange, ...]
    token: str
    problem: str = ""


def changes(client: MlflowClient, names: Sequence[str], token: str = "", *, timeout_s: float = 5.0) -> Polled:
    """Compare the aliases of ``names`` with those in ``token`` (empty: none are known); one small query a model, nothing is downloaded.

    Raises:
        InputError: the token is not one of this function's.
    """
    known = _known(token)
    found: list[AliasChange] = []
    problems = []
    for name in names:
        before = known.get(name, {})
        try:
            after = _aliases(client, name, timeout_s)
        except (MlflowException, OSError) as error:
            problems.append(f"{name}: the registry does not answer ({type(error).__name__})")
            continue
        for alias in sorted(before.keys() | after.keys()):
            if before.get(alias) != after.get(alias):
                found.append(AliasChange(name, alias, before.get(alias), after.get(alias)))
        known[name] = after
    return Polled(tuple(found), json.dumps(known, sort_keys=True), "; ".join(problems))


def _known(token: str) -> dict[str, dict[str, str]]:
    try:
        known = json.loads(token) if token else {}
        return {str(name): {str(alias): str(version) for alias, version in aliases.items()} for name, aliases in known.items()}
    except (json.JSONDecodeError, AttributeError) as error:
        raise InputError(f"{token[:40]!r} is no token of an earlier poll", where="token", remedy="leave it empty") from error


def _aliases(client: MlflowClient, name: str, timeout_s: float) -> dict[str, str]:
    """As ``current_aliases``, but a server gets one try: MLflow's client would go on trying for minutes."""
    if not client.tracking_uri.startswith("http"):
        return current_aliases(client, name)
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    creds = get_default_host_creds(client.tracking_uri)
    where = "/api/2.0/mlflow/registered-models/get"
    answer = http_request(creds, where, "GET", params={"name": name}, max_retries=0, timeout=timeout_s, raise_on_status=False)
    if answer.status_code == 404:
        return {}
    if answer.status_code != 200:
        raise OSError(f"status {answer.status_code}")
    entries = answer.json().get("registered_model", {}).get("aliases", [])
    return {entry["alias"]: str(entry["version"]) for entry in entries}


class RefusedDeliveryError(ValueError):
    """A webhook that was not signed with the secret, is old, or was seen before."""


class WebhookCheck:
    """Checks deliveries of one webhook. Call :meth:`accept` with the raw body, before anything parses it."""

    def __init__(self, secret: str, max_age_s: float = MAX_AGE_S) -> None:
        if not secret:
            raise InputError("is empty", where="secret", remedy="give the webhook a secret: unsigned deliveries are not accepted")
        self._secret, self._max_age_s = secret.encode(), max_age_s
        self._seen: dict[str, float] = {}

    def accept(self, body: bytes, headers: Mapping[str, str], now: float | None = None) -> tuple[str, str]:
        """Registered model and alias that the delivery is about. Raises RefusedDeliveryError."""
        now = time.time() if now is None else now
        lower = {key.lower(): value for key, value in headers.items()}
        delivery, stamp = lower.get("x-mlflow-delivery-id", ""), lower.get("x-mlflow-timestamp", "")
        digest = hmac.new(self._secret, f"{delivery}.{stamp}.".encode() + body, hashlib.sha256).digest()
        expected = "v1," + base64.b64encode(digest).decode()
        if not hmac.compare_digest(expected.encode(), lower.get("x-mlflow-signature", "").encode()):
            raise RefusedDeliveryError("the signature is missing or wrong")
        if not stamp.isdecimal() or abs(now - int(stamp)) > self._max_age_s:
            raise RefusedDeliveryError(f"its time is more than {self._max_age_s:g} s away")
        self._seen = {key: seen for key, seen in self._seen.items() if now - seen <= 2 * self._max_age_s}
        if delivery in self._seen:
            raise RefusedDeliveryError("it was delivered before")
        content = json.loads(body)
        if not isinstance(content, dict) or content.get("entity") != "model_version_alias":
            raise RefusedDeliveryError("it is not about an alias")
        self._seen[delivery] = now
        return str(content["data"]["name"]), str(content["data"]["alias"])
