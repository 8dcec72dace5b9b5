"""The runtime sees every move of an alias once, keeps what it knows while the registry is away, and believes only signed webhooks."""

from __future__ import annotations

import time

import pytest
from mlflow.entities.webhook import Webhook, WebhookAction, WebhookEntity, WebhookEvent
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.webhooks import delivery as mlflow_delivery

from registry.alias_watch import AliasChange, RefusedDeliveryError, WebhookCheck, changes
from registry.mlflow_client import open_client
from telemetry.errors import InputError

NAME = "workload-forecaster"


def test_every_move_is_seen_once_and_the_token_survives_a_restart(tracking):
    client = tracking.client
    client.create_registered_model(NAME)
    for _ in range(2):
        client.create_model_version(NAME, source="file:///nowhere")
    first = changes(client, [NAME, "never-registered"])
    assert (first.changes, first.problem) == ((), "")
    client.set_registered_model_alias(NAME, "champion", "1")
    second = changes(client, [NAME], first.token)
    assert second.changes == (AliasChange(NAME, "champion", None, "1"),)
    assert changes(client, [NAME], second.token).changes == ()
    client.set_registered_model_alias(NAME, "previous", "1")
    client.set_registered_model_alias(NAME, "champion", "2")
    fresh = open_client(tracking.tracking_uri)
    third = changes(fresh, [NAME], second.token)
    assert third.changes == (AliasChange(NAME, "champion", "1", "2"), AliasChange(NAME, "previous", None, "1"))
    client.delete_registered_model_alias(NAME, "previous")
    assert changes(client, [NAME], third.token).changes == (AliasChange(NAME, "previous", "1", None),)


def test_a_registry_that_is_away_changes_nothing(tracking, monkeypatch):
    client = tracking.client
    client.create_registered_model(NAME)
    client.create_model_version(NAME, source="file:///nowhere")
    client.set_registered_model_alias(NAME, "champion", "1")
    known = changes(client, [NAME])

    def away(name):
        raise MlflowException("database is locked")

    with monkeypatch.context() as patched:
        patched.setattr(client, "get_registered_model", away)
        polled = changes(client, [NAME], known.token)
    assert (polled.changes, polled.token) == ((), known.token)
    assert NAME in polled.problem
    server = MlflowClient("http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
    polled = changes(server, [NAME], known.token, timeout_s=1.0)
    assert (polled.changes, polled.token) == ((), known.token)
    assert "does not answer" in polled.problem
    with pytest.raises(InputError, match="token"):
        changes(client, [NAME], "yesterday")


class Caught:
    """In place of MLflow's HTTP session: what it would have sent."""

    def post(self, url, data, headers, timeout):
        self.body, self.headers = data, headers


@pytest.fixture
def sent(monkeypatch) -> Caught:
    monkeypatch.setattr(mlflow_delivery, "_validate_webhook_url", lambda url: None)
    event = WebhookEvent(WebhookEntity.MODEL_VERSION_ALIAS, WebhookAction.CREATED)
    webhook = Webhook("1", "promotions", "https://runtime.example/aliases", [event], 0, 0, secret="s3cret")
    caught = Caught()
    payload = {"name": NAME, "alias": "champion", "version": "2"}
    mlflow_delivery._send_webhook_request(webhook, payload, event, caught)
    return caught


def test_what_mlflow_signs_is_accepted_once(sent):
    check = WebhookCheck("s3cret")
    assert check.accept(sent.body, sent.headers) == (NAME, "champion")
    with pytest.raises(RefusedDeliveryError, match="before"):
        check.accept(sent.body, sent.headers)


def test_what_was_changed_is_old_or_unsigned_is_refused(sent):
    check = WebhookCheck("s3cret")
    for body, headers in (
        (sent.body.replace(b'"2"', b'"1"'), sent.headers),
        (sent.body, {**sent.headers, "X-MLflow-Delivery-Id": "another"}),
        (sent.body, {**sent.headers, "X-MLflow-Timestamp": str(int(time.time()) + 60)}),
        (sent.body, {key: value for key, value in sent.headers.items() if "Signature" not in key}),
    ):
        with pytest.raises(RefusedDeliveryError, match="signature"):
            check.accept(body, headers)
    with pytest.raises(RefusedDeliveryError, match="signature"):
        WebhookCheck("other").accept(sent.body, sent.headers)
    with pytest.raises(RefusedDeliveryError, match="time"):
        check.accept(sent.body, sent.headers, now=time.time() + 1000)
    with pytest.raises(InputError, match="secret"):
        WebhookCheck("")
