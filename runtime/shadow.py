"""Challengers see the champion's questions: after its answer, in a fixed order, within a time budget, and without any way to change it."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from envs.exploration import blind_spot
from envs.observation import ObservationLayout
from envs.state import Policy
from telemetry.errors import InputError

BUDGET_S = 1.0


@dataclass(frozen=True)
class Challenger:
    """A policy that is only listened to; ``version`` in the registry, empty for a judge."""

    name: str
    policy: Policy
    version: str = ""


@dataclass(frozen=True)
class ShadowAnswer:
    """What a challenger would have done; ``action`` None with the reason in ``error`` when it gave no usable answer."""

    name: str
    version: str
    action: int | None
    seconds: float
    error: str | None = None

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def shadow_answers(
    challengers: Sequence[Challenger], row: np.ndarray, layout: ObservationLayout, allowed: np.ndarray, *, budget_s: float = BUDGET_S
) -> tuple[ShadowAnswer, ...]:
    """Answers of all challengers in the order of their names and versions, one after the other.

    Each gets a copy of the observation ``[D]`` with only the answers in ``allowed`` (bool ``[A]``) open. One that raises, answers what is
    not allowed, or is not done when the budget of all together is spent, is recorded so; a slow one is left behind in its thread, and those
    after it are not asked.

    Raises:
        InputError: a budget that is not above 0.
    """
    if not budget_s > 0:
        raise InputError(f"budget_s {budget_s}", where="shadow", allowed="seconds above 0")
    answers, end = [], time.monotonic() + budget_s
    for challenger in sorted(challengers, key=lambda one: (one.name, one.version)):
        left = end - time.monotonic()
        if left <= 0:
            answers.append(ShadowAnswer(challenger.name, challenger.version, None, 0.0, "not asked: the time budget is spent"))
            continue
        answers.append(_ask(challenger, row, layout, allowed, left))
    return tuple(answers)


def _ask(challenger: Challenger, row: np.ndarray, layout: ObservationLayout, allowed: np.ndarray, left_s: float) -> ShadowAnswer:
    seen = np.array(row, dtype=np.float32)[None]
    layout.candidates(seen)[0][~np.asarray(allowed, dtype=np.bool_)] = 0.0
    if blind := blind_spot(challenger.policy, seen, layout):
        return ShadowAnswer(challenger.name, challenger.version, None, 0.0, f"not asked: {blind}")
    given: list[Any] = []

    def work() -> None:
        try:
            given.append(int(np.asarray(challenger.policy.act(seen, layout)).reshape(-1)[0]))
        except BaseException as error:  # whatever it raises, the answer of the champion stands
            given.append(f"{type(error).__name__}: {error}")

    began = time.monotonic()
    thread = threading.Thread(target=work, name=f"shadow-{challenger.name}", daemon=True)
    thread.start()
    thread.join(left_s)
    spent = round(time.monotonic() - began, 6)
    name, version = challenger.name, challenger.version
    if not given:
        return ShadowAnswer(name, version, None, spent, f"no answer within {left_s:.3f} s")
    if isinstance(given[0], str):
        return ShadowAnswer(name, version, None, spent, given[0])
    if not (0 <= given[0] < layout.n_candidates and allowed[given[0]]):
        return ShadowAnswer(name, version, None, spent, f"answered {given[0]}, which is not allowed")
    return ShadowAnswer(name, version, given[0], spent)
