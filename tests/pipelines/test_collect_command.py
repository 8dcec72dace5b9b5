"""``python -m pipelines.collect``: every collector's config, times, resuming, following, and one clear line when it cannot."""

from __future__ import annotations

import dataclasses
import json
import sys
import threading
from typing import ClassVar

import pandas as pd
import pytest

from pipelines import collect as command
from pipelines.cli import CONF_DIR, compose_config, group_choices
from telemetry.collectors import COLLECTORS, UnavailableError
from telemetry.errors import InputError
from telemetry.readers import READERS
from telemetry.spool import Spool

NOW = pd.Timestamp("2026-01-05T12:30:00Z")
# What an operator has to say: anything that is null in the config and has no default.
MACHINE = "/subscriptions/0/resourceGroups/r/providers/Microsoft.Compute/virtualMachines/n1"
SAID = {"url": "https://host.example", "resources": [MACHINE], "bmcs": ["n1=127.0.0.1"]}


@dataclasses.dataclass(frozen=True)
class Told:
    """A collector that answers with the span it was asked for; ``away`` counts the fetches that fail first."""

    reader: ClassVar[str] = "prometheus"
    suffix: ClassVar[str] = "json"
    asked: list = dataclasses.field(default_factory=list)
    away: list = dataclasses.field(default_factory=list)

    def fetch(self, start, end):
        if self.away:
            raise self.away.pop()
        self.asked.append((start, end))
        return json.dumps([str(start), str(end)]).encode()


def config(tmp_path, **change):
    return command.CollectConfig(**{"start": "-6h", "end": "now", "out": str(tmp_path / "spool"), "lookback_s": 0.0, **change})


@pytest.mark.parametrize("choice", group_choices("collector"))
def test_every_collector_builds_from_its_config(choice):
    values = compose_config("collect", [f"collector={choice}"]).collector
    kind = COLLECTORS[values.kind]
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]
    asked = {name: SAID.get(name, "x") for name in needed if values.get(name) is None}
    collector = command.collector_of({**values, **asked})
    assert isinstance(collector, kind)
    assert collector.reader in READERS
    said = {f.name: values.get(f.name) for f in dataclasses.fields(kind) if f.name not in needed and not dataclasses.is_dataclass(f.type)}
    assert set(values) <= {"kind", *(f.name for f in dataclasses.fields(kind))}
    assert set(said) <= set(values), "every key is in the file, with its default"


def test_every_collector_has_a_config():
    kinds = {compose_config("collect", [f"collector={choice}"]).collector.kind for choice in group_choices("collector")}
    assert kinds == set(COLLECTORS)


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("now", "2026-01-05T12:30:00Z"),
        ("-6h", "2026-01-05T06:30:00Z"),
        ("-1.5h", "2026-01-05T11:00:00Z"),
        ("-90min", "2026-01-05T11:00:00Z"),
        ("-7d", "2025-12-29T12:30:00Z"),
        ("2026-01-05T02:00:00+02:00", "2026-01-05T00:00:00Z"),
        ("2026-01-05", "2026-01-05T00:00:00Z"),
    ],
)
def test_times(text, time):
    assert command.time_of(text, NOW, "start") == pd.Timestamp(time)


def test_what_is_not_settled_is_left_for_the_next_run(tmp_path):
    collector = Told()
    command.collect_once(collector, config(tmp_path, settle_s=600.0), NOW)
    assert [(w.start, w.end) for w, _ in Spool(tmp_path / "spool").files()] == [
        (pd.Timestamp("2026-01-05T06:30Z"), pd.Timestamp("2026-01-05T12:00Z")),
        (pd.Timestamp("2026-01-05T12:00Z"), pd.Timestamp("2026-01-05T12:20Z")),
    ]
    command.collect_once(collector, config(tmp_path, settle_s=600.0), NOW + pd.Timedelta("1h"))
    assert collector.asked[2:] == [(pd.Timestamp("2026-01-05T12:20Z"), pd.Timestamp("2026-01-05T13:20Z"))]


def test_a_file_reaches_back_by_the_lookback(tmp_path):
    collector = Told()
    command.collect_once(collector, config(tmp_path, lookback_s=300.0, start="2026-01-05T06:00:00Z", end="2026-01-05T12:00:00Z"), NOW)
    assert collector.asked == [(pd.Timestamp("2026-01-05T05:55Z"), pd.Timestamp("2026-01-05T12:00Z"))]


def test_following_waits_for_a_system_that_is_away_and_fetches_what_it_missed(tmp_path, monkeypatch, caplog):
    collector = Told(away=[UnavailableError("away", where="https://host.example")])
    stop, waits, clock = threading.Event(), [], [NOW]

    def wait(seconds):
        waits.append(seconds)
        clock[0] += pd.Timedelta(seconds, unit="s")
        if len(waits) == 4:
            stop.set()

    monkeypatch.setattr(stop, "wait", wait)
    monkeypatch.setattr(command.pd.Timestamp, "now", lambda zone: clock[0], raising=False)
    fetched = command.follow(collector, config(tmp_path, follow=True, start="-1h", interval_s=900.0, chunk_h=24.0), stop)
    assert fetched == 3
    assert waits == [900.0] * 4
    assert "away" in caplog.text
    assert collector.asked[0] == (NOW - pd.Timedelta("1h"), NOW + pd.Timedelta("15min") - pd.Timedelta("120s"))
    assert [first[1] for first in collector.asked[:-1]] == [later[0] for later in collector.asked[1:]]


def test_following_ends_at_a_fault_that_cannot_pass(tmp_path):
    with pytest.raises(InputError, match="refused"):
        command.follow(Told(away=[InputError("refused")]), config(tmp_path, follow=True), threading.Event())


def test_two_collectors_do_not_share_a_spool(tmp_path):
    with command.sole_writer(str(tmp_path)), pytest.raises(InputError, match="another collector"), command.sole_writer(str(tmp_path)):
        pass
    with command.sole_writer(str(tmp_path)):
        assert Spool(tmp_path).files() == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"start": "yesterday"}, "yesterday"),
        ({"start": "now"}, "before the end"),
        ({"end": "2026-01-04T00:00:00Z"}, "before the end"),
        ({"chunk_h": 0.0}, "chunk_h"),
        ({"settle_s": -1.0}, "settle_s"),
        ({"follow": True, "end": "-1h"}, "follow"),
    ],
)
def test_wrong_values_are_named(tmp_path, change, told):
    with pytest.raises(InputError, match=told):
        command.collect_once(Told(), config(tmp_path, **change), NOW)


def run(monkeypatch, capsys, *overrides):
    monkeypatch.setattr(sys, "argv", ["collect", *overrides])
    with pytest.raises(SystemExit) as ended:
        command.main()
    return ended.value.code, capsys.readouterr()


def test_the_command_stores_and_says_how_to_read_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "collector_of", lambda values: Told())
    code, printed = run(monkeypatch, capsys, "collector.url=http://x", "out=spool", "start=-1h", "chunk_h=24")
    assert code == 0
    assert "1 new window(s), 1 in spool" in printed.out or "2 new window(s), 2 in spool" in printed.out
    assert "{path: spool, reader: prometheus}" in printed.out


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["collector.url=null"], "collector.url"),
        (["collector.urll=x"], "collector.url"),
        (["collector=graphite"], "prometheus"),
        (["collector.url=http://x", "start=soon"], "start: 'soon'"),
        (["collector.url=http://x", "collector.http.token_file=gone"], "gone"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, monkeypatch, capsys, overrides, told):
    monkeypatch.chdir(tmp_path)
    code, printed = run(monkeypatch, capsys, *overrides)
    assert code == 2
    lines = [line for line in printed.err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert told in lines[0]


def test_help_names_every_key():
    text = (CONF_DIR / "collect.yaml").read_text()
    for name in (f.name for f in dataclasses.fields(command.CollectConfig)):
        assert f"\n{name}: " in text
        assert text.count(name) > 1
