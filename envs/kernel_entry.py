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
from envs.kernel_clock import advance, begin_one, clear_one, log_is_full, reward_since_mark
from envs.kernel_compile import OPTIONS, Blocks, compiled, pointer
from envs.kernel_decisions import apply_action
from envs.kernel_scores import score_question
from envs.observation import write_observation


def _sources_digest() -> str:
    folder = Path(__file__).parent
    names = ("observation", "state", "fields", "packed", "events")
    files = sorted([*folder.glob("kernel_*.py"), folder / "fragmentation.py", *(folder / f"{name}.py" for name in names)])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


_DIGEST = _sources_digest()[:16]
CLEAR = -2


def _entry(function: Callable) -> Callable:
    """Compile an entry point over environments ``low <= b < high``; the digest becomes part of the name of its cache file."""
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    return njit(cache=True, **OPTIONS)(function)


@_entry
def drive(world, params, state, log, windows, actions, chooser, limits, observe, rewards, observations, low, high):
    """Move each environment on: begin ``windows[b]``, let a compiled judge play, or carry out ``actions[b]``; -1 does none of these.

    With ``chooser`` CLEAR a window is only laid out, its clock at 0 and nothing arrived, for a state that is filled in by hand.

    One entry for all three, as most of the compile time goes into what they share.
    """
    for b in range(low, high):
        window = windows[b] if windows[b] >= 0 else state.i[b, fx.WINDOW]
        c = Blocks(
            pointer(world.o),
            pointer(world.k),
            pointer(world.kf),
            pointer(world.j[window]),
            pointer(world.jf[window]),
            pointer(world.g[window]),
            pointer(world.gf[window]),
            pointer(params.q[b]),
            pointer(params.qf[b]),
            pointer(state.i[b]),
            pointer(state.f[b]),
            pointer(log[b]),
        )
        if windows[b] >= 0:
            clear_one(c, window)
            if chooser != CLEAR:
                begin_one(c)
        elif chooser >= 0:
            _play(c, chooser, limits[b])
        elif not c.i[fx.DONE]:
            if c.i[fx.ASKING] < 0:
                advance(c)
            elif actions[b] >= 0:
                apply_action(c, actions[b])
                advance(c)
        if observe:
            if c.i[fx.ASKING] >= 0 and c.i[fx.SCORED] < 2:
                score_question(c, True, True)
            write_observation(c, observations[b])
        if actions[b] >= 0:
            rewards[b, 0], rewards[b, 1] = reward_since_mark(c)


@compiled
def _play(c, chooser, limit):
    """Let a compiled judge decide until the window ends, ``limit`` decisions are made or the event log is full."""
    while not c.i[fx.DONE] and c.i[fx.DECISIONS] < limit:
        if c.i[fx.ASKING] >= 0:
            apply_action(c, choose_from_state(c, chooser))
        advance(c)
        if c.i[fx.ASKING] < 0 and log_is_full(c):
            return


@_entry
def choose_rows(rows, pools, levels, kind, quantile, actions):
    choose_from_rows(rows, pools, levels, kind, quantile, actions)
