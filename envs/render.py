"""Frames of a simulated cluster: a text or a picture, of the same scene."""

from __future__ import annotations

import numpy as np

from envs.kernel import Simulator
from envs.scene import DOWN, SLEEP, WAKE, Scene, scene_of

RENDER_MODES: tuple[str, ...] = ("ansi", "rgb_array")
# One question a frame: at four a second a viewer can still follow the job in question.
FRAMES_PER_SECOND = 4


def render_frame(simulator: Simulator, b: int, mode: str | None) -> str | np.ndarray | None:
    """Environment ``b`` as a text (``ansi``), as uint8 ``[640, 960, 3]`` (``rgb_array``), or None without a mode."""
    if mode is None:
        return None
    scene = scene_of(simulator, b)
    if mode == "ansi":
        return text_of(scene)
    from envs.picture import draw  # fonts and image library only for those who look

    return draw(scene)


def text_of(scene: Scene) -> str:
    """One line for each pool, then the question with its allowed actions, or the window's totals at its end."""
    lines = [f"window {scene.window}, second {scene.time_s}, {scene.jobs['waiting']} jobs waiting"]
    sites = {site.name: site for site in scene.sites}
    for pool in scene.pools:
        waking, asleep, down = (int((pool.mode == mode).sum()) for mode in (WAKE, SLEEP, DOWN))
        site = sites[pool.site]
        now = len(site.usd_per_kwh) // 2 - 1
        lines.append(
            f"{pool.name}: {len(pool.mode) - waking - asleep - down} awake, {waking} waking, {asleep} asleep, "
            + (f"{down} down, " if down else "")
            + f"{pool.share.shape[0] * pool.share.shape[1] - pool.share.sum():g} GPUs free, "
            + f"{site.usd_per_kwh[now]:.3f} USD/kWh, {site.g_per_kwh[now]:.0f} g/kWh"
        )
    if scene.question is not None:
        names = ", ".join(candidate.name for candidate in scene.question.candidates)
        lines.append(f"job '{scene.question.job_id}': {names}")
    elif scene.done:
        totals = scene.totals
        lines.append(f"window over: {totals['cost_usd']:.2f} USD, {totals['energy_kwh']:.2f} kWh, {totals['carbon_kg']:.2f} kg CO2e")
    return "\n".join(lines)
