"""The Prometheus collector against a server of the test: what is asked, what is retried, what is joined, and what is never told."""

from __future__ import annotations

import base64
import json
import logging

import pandas as pd
import pytest
from http_answers import serving

from telemetry.collectors import UnavailableError
from telemetry.collectors import http as client
from telemetry.collectors.http import HttpConfig
from telemetry.collectors.prometheus import MAX_POINTS, PrometheusCollector
from telemetry.errors import InputError
from telemetry.readers import READERS

START = pd.Timestamp("2026-01-05T00:00:00Z")
DAY = pd.Timedelta("1d")
SECRET = "s3cr3t-t0ken"


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited between attempts, without waiting."""
    found: list[float] = []
    monkeypatch.setattr(client.time, "sleep", found.append)
    return found


def answer_of(form, *, name="DCGM_FI_DEV_POWER_USAGE", warnings=()):
    """What a server gives for a form: a point at every step, of two GPUs."""
    first, last, step = (int(form[key]) for key in ("start", "end", "step"))
    values = [[t, str(100 + t % 7)] for t in range(first, last + 1, step)]
    result = [{"metric": {"__name__": name, "gpu": gpu, "Hostname": "n0"}, "values": values} for gpu in "01"]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}, **({"warnings": list(warnings)} if warnings else {})}


def good(path, form, headers):
    return 200, {"Content-Type": "application/json"}, json.dumps(answer_of(form)).encode()


def failing(status, times, headers=None, body=b"{}"):
    """A server that fails so many times and is well then."""
    left = [times]

    def respond(path, form, request_headers):
        if left[0]:
            left[0] -= 1
            return status, headers or {}, body
        return good(path, form, request_headers)

    return respond


def test_a_window_longer_than_the_servers_limit_is_one_answer_without_a_doubled_or_lost_point():
    with serving(good) as (url, asked):
        data = PrometheusCollector(url, step_s=3).fetch(START + pd.Timedelta("1s"), START + DAY)
    times = [t for t, _ in json.loads(data)["data"]["result"][0]["values"]]
    first = int(START.timestamp()) + 3
    assert times == list(range(first, int((START + DAY).timestamp()), 3))
    assert len(asked) == -(-len(times) // MAX_POINTS) == 3
    for form in asked:
        assert (int(form["end"]) - int(form["start"])) // 3 + 1 <= 11_000
    assert len(json.loads(data)["data"]["result"]) == 2


def test_the_query_names_what_the_reader_knows_and_the_operators_matchers():
    with serving(good) as (url, asked):
        PrometheusCollector(url + "/prefix/", match='{cluster="a", job=~"dcgm.*"}').fetch(START, START + pd.Timedelta("1min"))
    assert asked[0]["query"].endswith(', cluster="a", job=~"dcgm.*"}')
    assert asked[0]["query"].startswith('{__name__=~"')
    assert "|DCGM_FI_DEV_GPU_UTIL" in asked[0]["query"]
    assert PrometheusCollector(url, metrics=("DCGM_FI_DEV_POWER_USAGE",)).query == '{__name__=~"DCGM_FI_DEV_POWER_USAGE"}'


def test_too_many_samples_are_asked_for_in_halves():
    def respond(path, form, headers):
        if (int(form["end"]) - int(form["start"])) // int(form["step"]) > 30:
            told = {"status": "error", "errorType": "execution", "error": "query processing would load too many samples into memory"}
            return 422, {}, json.dumps(told).encode()
        return good(path, form, headers)

    with serving(respond) as (url, asked):
        data = PrometheusCollector(url, step_s=30).fetch(START, START + pd.Timedelta("1h"))
    times = [t for t, _ in json.loads(data)["data"]["result"][0]["values"]]
    assert times == list(range(int(START.timestamp()), int(START.timestamp()) + 3600, 30))
    assert len(asked) == 7


@pytest.mark.parametrize(("status", "headers"), [(503, {}), (500, {}), (429, {"Retry-After": "7"}), (502, {"Retry-After": "soon"})])
def test_what_may_pass_is_tried_again_with_growing_waits(status, headers, waits, caplog):
    with serving(failing(status, 3, headers)) as (url, asked):
        data = PrometheusCollector(url).fetch(START, START + pd.Timedelta("1min"))
    assert len(json.loads(data)["data"]["result"]) == 2
    assert len(asked) == 4
    if headers.get("Retry-After") == "7":
        assert waits == [7.0] * 3
    else:
        assert all(0.5 * 2**k <= wait <= 2**k for k, wait in enumerate(waits))
    assert str(status) in caplog.text


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_cannot_pass_is_not_tried_again(status, waits):
    body = json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error: unexpected"}).encode()
    with serving(failing(status, 99, body=body)) as (url, asked), pytest.raises(InputError, match=f"status {status}") as caught:
        PrometheusCollector(url).fetch(START, START + pd.Timedelta("1min"))
    assert len(asked) == 1
    assert waits == []
    assert not isinstance(caught.value, UnavailableError)
    assert url in str(caught.value)


def test_a_dead_server_is_named_after_the_last_attempt(waits):
    with serving(good) as (url, _):
        pass
    with pytest.raises(UnavailableError, match=r"unreachable.*refused") as caught:
        PrometheusCollector(url, http=HttpConfig(attempts=3)).fetch(START, START + pd.Timedelta("1min"))
    assert url in str(caught.value)
    assert len(waits) == 2


def test_a_server_that_asks_for_an_hour_is_left_for_the_next_run(waits):
    with serving(failing(429, 99, {"Retry-After": "3600"})) as (url, asked), pytest.raises(UnavailableError, match="3600 s"):
        PrometheusCollector(url).fetch(START, START + pd.Timedelta("1min"))
    assert len(asked) == 1


def test_a_slow_answer_is_a_fault_that_may_pass(waits):
    import threading

    release = threading.Event()

    def respond(path, form, headers):
        release.wait(5)
        return good(path, form, headers)

    with serving(respond) as (url, _):
        with pytest.raises(UnavailableError, match="timed out"):
            PrometheusCollector(url, http=HttpConfig(attempts=1, timeout_s=0.05)).fetch(START, START + pd.Timedelta("1min"))
        release.set()


def test_credentials_come_from_files_are_read_anew_and_never_told(tmp_path, caplog, monkeypatch, waits):
    token, seen = tmp_path / "token", []
    token.write_text(SECRET + "\n")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def respond(path, form, headers):
        seen.append((headers.get("Authorization"), headers.get("X-Scope-OrgID")))
        return 403, {}, b"{}"

    with serving(respond) as (url, _), caplog.at_level(logging.DEBUG):
        for http in (HttpConfig(token_file=str(token)), HttpConfig(user="me", password_file=str(token)), HttpConfig()):
            with pytest.raises(InputError, match="status 403") as caught:
                PrometheusCollector(url, http=http, tenant="a").fetch(START, START + pd.Timedelta("1min"))
            assert SECRET not in str(caught.value) + repr(http)
        token.write_text("other")
        with pytest.raises(InputError):
            PrometheusCollector(url, http=HttpConfig(token_file=str(token))).fetch(START, START + pd.Timedelta("1min"))
    basic = "Basic " + base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert seen == [(f"Bearer {SECRET}", "a"), (basic, "a"), (None, "a"), ("Bearer other", None)]
    assert SECRET not in caplog.text


def test_a_redirect_is_not_followed(tmp_path):
    token = tmp_path / "token"
    token.write_text(SECRET)
    with (
        serving(lambda *_: (307, {"Location": "http://elsewhere.example/x?a=b"}, b"")) as (url, asked),
        pytest.raises(InputError, match=r"redirects to 'http://elsewhere.example/x'"),
    ):
        PrometheusCollector(url, http=HttpConfig(token_file=str(token))).fetch(START, START + pd.Timedelta("1min"))
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"<html>", "no JSON object"),
        (b"[]", "no JSON object"),
        (b'{"status":"error","error":"boom"}', "the query failed: boom"),
        (b'{"status":"success"}', "no matrix"),
        (b'{"status":"success","data":{"resultType":"vector","result":[]}}', "no matrix"),
        (b'{"status":"success","data":{"resultType":"matrix","result":[1]}}', "no series"),
    ],
)
def test_an_answer_that_is_none_is_refused(body, told):
    with serving(lambda *_: (200, {}, body)) as (url, _), pytest.raises(InputError, match=told) as caught:
        PrometheusCollector(url).fetch(START, START + pd.Timedelta("1min"))
    assert url in str(caught.value)


def test_a_partial_answer_is_kept_with_its_warning_and_the_reader_notes_it(tmp_path, context, caplog):
    def respond(path, form, headers):
        return 200, {}, json.dumps(answer_of(form, warnings=["store east is down"])).encode()

    with serving(respond) as (url, _):
        data = PrometheusCollector(url).fetch(START, START + pd.Timedelta("10min"))
    assert "store east is down" in caplog.text
    assert json.loads(data)["warnings"] == ["store east is down"]
    path = tmp_path / "answer.json"
    path.write_bytes(data)
    result = READERS["prometheus"].read(path, context)
    assert result.quality.notes["src"]["the server warned, so the answer may be partial: store east is down"] == 1
    assert len(result.tables["samples"]) == 40


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"url": "ftp://x"}, "url"),
        ({"url": "http://me:pw@x"}, "credentials in the address"),
        ({"url": "http://x/?a=b"}, "url"),
        ({"match": 'a="b"} or vector(1) #'}, "match"),
        ({"match": "up"}, "match"),
        ({"metrics": ("up",)}, "metric 'up' is not read"),
        ({"step_s": 0}, "step_s"),
    ],
)
def test_wrong_values_are_named(change, told):
    with pytest.raises(InputError, match=told) as caught:
        PrometheusCollector(**{"url": "http://x", **change})
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"attempts": 0}, "attempts"),
        ({"timeout_s": 0.0}, "timeout_s"),
        ({"user": "a"}, "password_file"),
        ({"token_file": "/nowhere"}, "token_file"),
    ],
)
def test_wrong_ways_of_asking_are_named(change, told):
    with pytest.raises(InputError, match=told):
        HttpConfig(**change)


def test_a_secret_of_more_than_one_word_is_refused_untold(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{SECRET} and more\n")
    with pytest.raises(InputError, match="more than one word") as caught:
        client.read_secret(str(path))
    assert SECRET not in str(caught.value)
