"""Challengers listen and change nothing: order, budget, exceptions, and hands that are kept off."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from envs.heuristics import JUDGES
from envs.observation import PLANNED, ObservationLayout
from runtime.shadow import Challenger, shadow_answers
from telemetry.errors import InputError

LAYOUT = ObservationLayout(2, 2)
ALLOWED = np.array([True, True, False, True, False])


def row():
    values = np.random.default_rng(0).normal(0, 1, (1, LAYOUT.size)).astype(np.float32)
    LAYOUT.candidates(values)[0, :, 0] = ALLOWED
    return values[0]


class Says:
    name, settings = "says", JUDGES["lookahead"].settings

    def __init__(self, action=1, *, seconds=0.0, error=None, spoil=False, log=None):
        self.action, self.seconds, self.error, self.spoil, self.log = action, seconds, error, spoil, log

    def act(self, observation, layout):
        if self.log is not None:
            self.log.append(self.action)
        if self.spoil:
            observation[...] = 9.0
        if self.error is not None:
            raise self.error
        self.seen = observation.copy()
        time.sleep(self.seconds)
        return np.array([self.action])


def ask(*challengers, budget_s=60.0):
    return shadow_answers(challengers, row(), LAYOUT, ALLOWED, budget_s=budget_s)


def test_answers_come_in_the_order_of_names_and_versions():
    log = []
    said = ask(Challenger("b", Says(1, log=log)), Challenger("a", Says(3, log=log), "10"), Challenger("a", Says(0, log=log), "02"))
    assert [(one.name, one.version, one.action, one.error) for one in said] == [
        ("a", "02", 0, None),
        ("a", "10", 3, None),
        ("b", "", 1, None),
    ]
    assert log == [0, 3, 1]


@pytest.mark.parametrize("error", [ValueError("broken"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
def test_whatever_a_challenger_raises_is_recorded(error):
    said = ask(Challenger("a", Says(error=error)), Challenger("b", Says(1)))
    assert said[0].action is None
    assert type(error).__name__ in said[0].error
    assert said[1].action == 1


@pytest.mark.parametrize("action", [2, -1, 5])
def test_an_answer_that_is_not_allowed_is_none(action):
    (said,) = ask(Challenger("a", Says(action)))
    assert said.action is None
    assert "not allowed" in said.error


def test_a_slow_one_is_left_behind_and_those_after_it_are_not_asked():
    log = []
    gate = threading.Event()

    class Hangs(Says):
        def act(self, observation, layout):
            gate.wait(20)
            return np.array([1])

    said = ask(Challenger("a", Says(1, log=log)), Challenger("b", Hangs()), Challenger("c", Says(3, log=log)), budget_s=2.0)
    gate.set()
    assert said[0].action == 1
    assert "no answer within" in said[1].error
    assert said[2].error == "not asked: the time budget is spent"
    assert log == [1]


def test_a_challenger_sees_only_what_is_allowed_and_cannot_touch_the_question():
    question, policy = row(), Says(0)
    LAYOUT.candidates(question[None])[0, 2, 0] = 1.0
    before = question.copy()
    shadow_answers([Challenger("a", Says(spoil=True)), Challenger("b", policy)], question, LAYOUT, ALLOWED, budget_s=60.0)
    np.testing.assert_array_equal(question, before)
    np.testing.assert_array_equal(LAYOUT.mask(policy.seen)[0], ALLOWED)


def test_a_planner_without_plans_is_not_asked():
    question = row()
    LAYOUT.candidates(question[None])[0, :, PLANNED] = 0.0
    (said,) = shadow_answers([Challenger("planner", JUDGES["planner"])], question, LAYOUT, ALLOWED, budget_s=60.0)
    assert said.action is None
    assert "decides by plans" in said.error
    LAYOUT.candidates(question[None])[0, :, PLANNED] = [0.0, 0.5, 0.0, 1.0, 0.0]
    assert shadow_answers([Challenger("planner", JUDGES["planner"])], question, LAYOUT, ALLOWED, budget_s=60.0)[0].action == 0


def test_a_budget_is_above_zero():
    with pytest.raises(InputError, match="budget_s 0"):
        ask(budget_s=0)
