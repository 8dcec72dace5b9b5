"""Entry points of the compiled simulator.

They are cached on disk under a digest of all kernel sources, because numba itself looks only at the file of the entry point.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from numba import njit

from envs import fields as fx
from envs.kernel_choosers import choose_from_rows, choose_from_state
from envs.kernel_clock import advance, log_is_full, reset_one, reward_since_mark
from envs.kernel_compile import OPTIONS, compiled
from envs.kernel_decisions import apply_action
from envs.kernel_scores import score_question
from envs.observation import write_observation


def _sources_digest() -> str:
    folder = Path(__file__).parent
    names = ("observation", "state", "fields", "packed", "events")
    files = sorted([*folder.glob("kernel_*.py"), *(folder / f"{name}.py" for name in names)])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_DIGEST = _sources_digest()[:16]


def _entry(function: Callable) -> Callable:
    """Compile an entry point over environments ``low <= b < high``; the digest becomes part of the name of its cache file."""
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    return njit(cache=True, **OPTIONS)(function)


@_entry
def drive(static, jobs, grid, params, state, windows, actions, chooser, limits, observe, rewards, observations, low, high):
    """Move each environment on: begin ``windows[b]``, let a compiled judge play, or carry out ``actions[b]``; -1 does none of these.

    One entry for all three, as most of the compile time goes into what they share.
    """
    for b in range(low, high):
        if windows[b] >= 0:
            reset_one(static, jobs, grid, params, state, b, windows[b])
        elif chooser >= 0:
            _play(static, jobs, grid, params, state, b, chooser, limits[b])
        elif not state.env_i[b, fx.DONE]:
            if state.env_i[b, fx.ASKING] < 0:
                advance(static, jobs, grid, params, state, b)
            elif actions[b] >= 0:
                apply_action(static, jobs, grid, params, state, b, actions[b])
                advance(static, jobs, grid, params, state, b)
        if observe:
            if state.env_i[b, fx.ASKING] >= 0 and not state.env_i[b, fx.SCORED]:
                score_question(static, jobs, grid, params, state, b)
            write_observation(static, jobs, grid, params, state, b, observations[b])
        if actions[b] >= 0:
            rewards[b, 0], rewards[b, 1] = reward_since_mark(params, state, b)


@compiled
def _play(static, jobs, grid, params, state, b, chooser, limit):
    """Let a compiled judge decide until the window ends, ``limit`` decisions are made or the event log is full."""
    while not state.env_i[b, fx.DONE] and state.env_i[b, fx.DECISIONS] < limit:
        if state.env_i[b, fx.ASKING] >= 0:
            action = choose_from_state(static, jobs, grid, params, state, b, chooser)
            apply_action(static, jobs, grid, params, state, b, action)
        advance(static, jobs, grid, params, state, b)
        if state.env_i[b, fx.ASKING] < 0 and log_is_full(jobs, state, b):
            return


@_entry
def choose_rows(rows, candidates, kind, actions):
    choose_from_rows(rows, candidates, kind, actions)
