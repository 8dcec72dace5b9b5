"""The log of triggers: once each, one a cool-down, and whole whoever is killed."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest

from pipelines.triggers import Trigger, TriggerLog
from telemetry.errors import InputError

FIRST = Trigger("workload-forecaster", "loss", "it lost more", {"level": 1.5}, "ab" * 32, "2026-01-05T12:00:00+00:00")
LATER = replace(FIRST, data_sha256="cd" * 32, at="2026-01-05T20:00:00+00:00")


@pytest.fixture
def log(tmp_path) -> TriggerLog:
    return TriggerLog(tmp_path / "triggers.jsonl", cooldown_s=6 * 3600)


def test_the_same_trigger_is_taken_once(log):
    assert log.offer(FIRST).accepted
    again = log.offer(replace(FIRST, reason="in other words", at="2026-01-09T12:00:00+00:00"))
    assert (again.accepted, again.why) == (False, f"trigger {FIRST.id} is known")
    assert log.open() == [FIRST]


def test_a_model_in_cool_down_gets_no_second_trigger_and_another_model_does(log):
    log.offer(FIRST)
    soon = log.offer(replace(LATER, rule="bias", at="2026-01-05T17:59:00+00:00"))
    assert not soon.accepted
    assert "cool-down" in soon.why
    assert log.offer(replace(LATER, model="power-forecaster", at=FIRST.at)).accepted
    assert log.offer(LATER).accepted


def test_what_is_finished_is_no_longer_open_and_stays_known(log):
    log.offer(FIRST)
    assert log.claim(FIRST.id)
    assert log.claim(FIRST.id), "who claimed it may have been killed"
    log.finish(FIRST.id, "promoted version 2")
    log.finish(FIRST.id, "something else")
    assert log.open() == []
    assert not log.claim(FIRST.id)
    assert log.outcomes() == {FIRST.id: "promoted version 2"}
    assert not log.offer(FIRST).accepted
    with pytest.raises(InputError, match="no trigger 'ffff'"):
        log.finish("ffff", "x")


@pytest.mark.parametrize("kept", [0, 1, 40, -1])
def test_a_line_that_a_kill_left_half_written_is_no_line(log, kept):
    log.offer(FIRST)
    whole = log.path.read_bytes()
    log.offer(LATER)
    second = log.path.read_bytes()[len(whole) :]
    log.path.write_bytes(whole + second[:kept])
    # All but the line's end: the event is whole, and counts.
    assert [one.id for one in log.open()] == ([FIRST.id, LATER.id] if kept == -1 else [FIRST.id])
    assert log.offer(LATER).accepted is (kept != -1)
    assert [one.id for one in log.open()] == [FIRST.id, LATER.id]


OTHERS = ('{"event": "offered", "id": "x"}', '{"event": "made up", "id": "x"}', "[1]", '{"event": "finished", "id": "x"}')


@pytest.mark.parametrize("line", OTHERS)
def test_a_line_of_something_else_is_named(log, line):
    log.offer(FIRST)
    with log.path.open("a") as handle:
        handle.write(line + "\n")
    with pytest.raises(InputError, match="line 2"):
        log.open()


@pytest.mark.parametrize("at", ["", "yesterday", "2026-01-05T12:00:00"])
def test_a_time_that_is_none_is_refused(log, at):
    with pytest.raises(InputError, match="offset"):
        log.offer(replace(FIRST, at=at))


def _offer_all(path, start) -> None:
    start.wait()
    for number in range(20):
        TriggerLog(path).offer(replace(FIRST, data_sha256=str(number)))


def test_racing_processes_write_each_trigger_once(tmp_path):
    context = multiprocessing.get_context("fork")
    start, path = context.Event(), tmp_path / "triggers.jsonl"
    racers = [context.Process(target=_offer_all, args=(path, start)) for _ in range(4)]
    for racer in racers:
        racer.start()
    start.set()
    for racer in racers:
        racer.join()
    assert len(path.read_text().splitlines()) == 20
    assert len({one.id for one in TriggerLog(path).open()}) == 20
