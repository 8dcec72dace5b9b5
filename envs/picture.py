"""The picture of a cluster that ``render_mode="rgb_array"`` gives: drawn with Pillow, a few milliseconds a frame."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from envs.scene import ACTIVE, DOWN, IDLE, POWER_PARTS, SLEEP, STATE_NAMES, WAKE, PoolScene, QuestionScene, Scene, SiteScene
from telemetry.classes import WORKLOAD_CLASSES

WIDTH, HEIGHT = 960, 640
INK, GREY, FAINT, PAPER = (28, 32, 38), (105, 112, 122), (214, 218, 224), (250, 250, 248)
# Okabe and Ito (2008): told apart by colour-blind readers
CLASS_COLOURS: dict[str, tuple[int, int, int]] = {
    "training": (0, 114, 178),
    "fine_tuning": (86, 180, 233),
    "batch_inference": (0, 158, 115),
    "realtime_inference": (213, 94, 0),
    "interactive": (204, 121, 167),
}
STATE_COLOURS: dict[int, tuple[int, int, int]] = {
    ACTIVE: (255, 255, 255),
    IDLE: (240, 228, 66),
    WAKE: (230, 159, 0),
    SLEEP: (70, 76, 92),
    DOWN: (160, 20, 30),
}
PART_COLOURS = ((60, 90, 130), STATE_COLOURS[IDLE], STATE_COLOURS[WAKE], STATE_COLOURS[SLEEP])
SITE_COLOURS = ((0, 90, 160), (200, 80, 0), (0, 130, 90), (140, 60, 140))
FREE_GPU = (226, 229, 234)
Box = tuple[int, int, int, int]
POOLS: Box = (14, 52, 606, 440)
SIDE: Box = (622, 52, 946, 440)
STRIP: Box = (14, 456, 946, 590)
LARGEST_GPU_PX = 30
SHOWN_CANDIDATES = 9


def draw(scene: Scene) -> np.ndarray:
    """The picture, uint8 ``[640, 960, 3]``."""
    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(image)
    _head(pen, scene)
    _pools(pen, scene.pools)
    _side(pen, scene)
    _strip(pen, scene)
    _legend(pen)
    return np.asarray(image, dtype=np.uint8)


@lru_cache(maxsize=8)
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / name), size)


def _text(pen, at: tuple[float, float], words: str, size: int = 11, colour=INK, *, bold: bool = False, anchor: str = "la", room: int = 0):
    """Write ``words``, cut with an ellipsis where they are wider than ``room`` pixels (0 = as wide as they are)."""
    font = _font(size, bold)
    if room and font.getlength(words) > room:
        while len(words) > 1 and font.getlength(words + "…") > room:
            words = words[:-1]
        words += "…"
    pen.text(at, words, font=font, fill=colour, anchor=anchor)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.2f}"


def _duration(seconds: float) -> str:
    if abs(seconds) < 60:
        return f"{seconds:.0f} s"
    if abs(seconds) < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if abs(seconds) < 48 * 3600 else f"{seconds / 86400:.1f} d"


def _head(pen, scene: Scene) -> None:
    jobs, totals = scene.jobs, scene.totals
    clock = f"{scene.time:%a %Y-%m-%d %H:%M:%S} UTC"
    _text(pen, (14, 8), clock, 16, bold=True)
    _text(pen, (14, 30), f"window {scene.window}, {_duration(scene.time_s)} after its start" + (", over" if scene.done else ""), 11, GREY)
    running = jobs["running"] + jobs["starting"]
    words = f"jobs: {jobs['submitted']} submitted, {jobs['waiting']} waiting, {running} running, {jobs['ended']} ended"
    _text(pen, (946, 10), words + f", {jobs['rejected']} rejected", 12, anchor="ra")
    money = f"{totals['cost_usd']:,.2f} USD   {totals['energy_kwh']:,.1f} kWh   {totals['carbon_kg']:,.1f} kg CO2e"
    _text(pen, (946, 29), f"so far: {money}   penalties {totals['penalty_usd']:,.2f} USD", 12, anchor="ra")
    pen.line((14, 47, 946, 47), fill=FAINT)


# ---------------------------------------------------------------- nodes


def _pools(pen, pools: tuple[PoolScene, ...]) -> None:
    """Pools below each other, each with room in proportion to its GPUs but never less than its share of a third."""
    left, top, right, bottom = POOLS
    gpus = np.array([pool.share.shape[0] * pool.share.shape[1] for pool in pools], dtype=float)
    part = (gpus / gpus.sum() * 2 + 1 / len(pools)) / 3
    edges = top + np.concatenate([[0.0], np.cumsum(part)]) * (bottom - top)
    for pool, low, high in zip(pools, edges[:-1], edges[1:], strict=True):
        _pool(pen, pool, (left, int(low), right, int(high)))


def _pool(pen, pool: PoolScene, box: Box) -> None:
    left, top, right, bottom = box
    nodes, gpus = pool.share.shape[:2]
    counts = np.bincount(pool.mode, minlength=len(STATE_NAMES))
    states = ", ".join(f"{count} {name}" for count, name in zip(counts, STATE_NAMES, strict=True) if count)
    free = nodes * gpus - pool.share.sum()
    _text(pen, (left, top), pool.name, 12, bold=True, room=190)
    beside = left + min(190, int(_font(12, True).getlength(pool.name))) + 10
    about = f"{pool.gpu_model} at {pool.site}; nodes: {states}; {_amount(free)} of {nodes * gpus:,} GPUs free"
    _text(pen, (beside, top + 1), about, 11, GREY, room=right - beside)
    area = (left, top + 18, right, bottom - 6)
    columns, size = _cell_size(nodes, gpus, area[2] - area[0], area[3] - area[1])
    if size:
        _node_cells(pen, pool, area, columns, size)
    else:
        _group_cells(pen, pool, area)


def _cell_size(nodes: int, gpus: int, width: int, height: int) -> tuple[int, int]:
    """GPU columns within a node and the largest pixels a GPU with which all nodes fit; 0 pixels when none do."""
    best = (1, 0)
    for columns in range(1, gpus + 1):
        rows = math.ceil(gpus / columns)
        if columns > 4 * rows or rows > 4 * columns:
            continue
        for size in range(LARGEST_GPU_PX, max(best[1], 2), -1):
            across = (width + 3) // (columns * (size + 1) + 6)
            if across and math.ceil(nodes / across) * (rows * (size + 1) + 6) <= height + 3:
                best = (columns, size)
                break
    return best


def _node_cells(pen, pool: PoolScene, area: Box, columns: int, size: int) -> None:
    """A cell for each node in the colour of its state; within it a square for each GPU, filled from below by the classes it serves."""
    nodes, gpus = pool.share.shape[:2]
    wide, high = columns * (size + 1) + 6, math.ceil(gpus / columns) * (size + 1) + 6
    across = (area[2] - area[0] + 3) // wide
    for node in range(nodes):
        x, y = area[0] + node % across * wide, area[1] + node // across * high
        mode = int(pool.mode[node])
        pen.rectangle((x, y, x + wide - 4, y + high - 4), fill=STATE_COLOURS[mode], outline=INK if mode == ACTIVE else GREY)
        for gpu in range(gpus):
            gx, gy = x + 2 + gpu % columns * (size + 1), y + 2 + gpu // columns * (size + 1)
            held = pool.share[node, gpu]
            if mode == ACTIVE or held.any():
                pen.rectangle((gx, gy, gx + size - 1, gy + size - 1), fill=FREE_GPU)
                _stack(pen, (gx, gy, gx + size - 1, gy + size - 1), held, 1.0)


def _group_cells(pen, pool: PoolScene, area: Box) -> None:
    """For large pools a cell stands for several nodes: states as a strip on top, GPUs in use by class as a filling."""
    nodes, gpus = pool.share.shape[:2]
    wide, high = 10, 16
    across, down = max((area[2] - area[0]) // wide, 1), max((area[3] - area[1] - 12) // high, 1)
    each = math.ceil(nodes / (across * down))
    for cell in range(math.ceil(nodes / each)):
        members = slice(cell * each, min((cell + 1) * each, nodes))
        x, y = area[0] + cell % across * wide, area[1] + cell // across * high
        count = members.stop - members.start
        states = np.bincount(pool.mode[members], minlength=len(STATE_NAMES)) / count
        edge = float(x)
        for mode, share in enumerate(states):
            if share > 0:
                pen.rectangle((edge, y, min(edge + share * 8, x + 8) - 0.01, y + 3), fill=STATE_COLOURS[mode])
            edge += share * 8
        dark = states[SLEEP] + states[DOWN]
        ground = tuple(round(free + dark * (GREY[i] - free)) for i, free in enumerate(FREE_GPU))
        pen.rectangle((x, y + 4, x + 8, y + 13), fill=ground)
        _stack(pen, (x, y + 4, x + 8, y + 13), pool.share[members].sum(axis=(0, 1)), count * gpus)
        pen.rectangle((x, y, x + 8, y + 13), outline=GREY)
    _text(
        pen,
        (area[2], area[3] + 2),
        f"one cell = {each} node{'s' if each > 1 else ''}: states above, GPUs in use below",
        9,
        GREY,
        anchor="rd",
    )


def _stack(pen, box: Box, parts: np.ndarray, whole: float) -> None:
    """Fill ``box`` from below with the parts of a whole in the colours of the classes."""
    left, top, right, bottom = box
    floor = bottom + 1.0
    for name, part in zip(WORKLOAD_CLASSES, parts, strict=True):
        if part <= 0:
            continue
        ceiling = max(floor - part / whole * (bottom - top + 1), top)
        if round(ceiling) <= round(floor) - 1:
            pen.rectangle((left, round(ceiling), right, round(floor) - 1), fill=CLASS_COLOURS[name])
        floor = ceiling


# ---------------------------------------------------------------- right side


def _side(pen, scene: Scene) -> None:
    left, top, right, _ = SIDE
    pen.line((left - 8, top, left - 8, SIDE[3]), fill=FAINT)
    y = _watts(pen, scene.sites, left, top, right)
    y = _queue(pen, scene, left, y + 8, right)
    if scene.question is not None:
        _question(pen, scene.question, scene.time_s, left, y + 8, right)
    elif scene.done:
        totals = scene.totals
        _text(pen, (left, y + 8), "the window is over", 12, bold=True)
        _text(pen, (left, y + 26), f"objective {totals['objective_usd']:,.2f} USD", 11)
        _text(pen, (left, y + 42), f"service level violated by {100 * totals['sla_violation_rate']:.1f} % of the jobs", 11)


def _watts(pen, sites: tuple[SiteScene, ...], left: int, top: int, right: int) -> int:
    """A bar of watts for each site, by what draws them."""
    _text(pen, (left, top), "power now (with cooling)", 12, bold=True)
    most = max(max(float(site.watts.sum()) for site in sites), 1.0)
    for row, site in enumerate(sites[:5]):
        y = top + 20 + 18 * row
        _text(pen, (left, y), site.name, 11, SITE_COLOURS[row % len(SITE_COLOURS)], bold=True, room=74)
        x, width = left + 80.0, right - left - 80 - 74
        for watts, colour in zip(site.watts, PART_COLOURS, strict=True):
            if watts > 0:
                pen.rectangle((x, y + 1, x + watts / most * width, y + 12), fill=colour)
                x += watts / most * width
        _text(pen, (right, y), f"{site.watts.sum() / 1000:,.2f} kW", 11, anchor="ra")
    y = top + 22 + 18 * min(len(sites), 5)
    x = left
    for name, colour in zip(POWER_PARTS, PART_COLOURS, strict=True):
        x = _key(pen, x, y, name, colour, 10) + 8
    return y + 14


def _queue(pen, scene: Scene, left: int, top: int, right: int) -> int:
    """Waiting jobs by class."""
    _text(pen, (left, top), "waiting", 12, bold=True)
    most = max(int(scene.waiting.max()), 1)
    for row, name in enumerate(WORKLOAD_CLASSES):
        y = top + 18 + 15 * row
        count, gpus = int(scene.waiting[row]), float(scene.waiting_gpus[row])
        _text(pen, (left, y), name.replace("_", " "), 11, INK if count else GREY)
        if count:
            pen.rectangle((left + 122, y + 2, left + 122 + count / most * 56, y + 11), fill=CLASS_COLOURS[name])
        _text(
            pen,
            (right, y),
            f"{count:,} job{'s' if count > 1 else ''}, {_amount(gpus)} GPUs" if count else "none",
            11,
            INK if count else GREY,
            anchor="ra",
        )
    return top + 18 + 15 * len(WORKLOAD_CLASSES)


def _question(pen, question: QuestionScene, now: int, left: int, top: int, right: int) -> None:
    colour = CLASS_COLOURS[question.workload_class]
    pen.rectangle((left, top + 2, left + 9, top + 11), fill=colour)
    _text(pen, (left + 15, top), f"in question: {question.job_id}", 12, bold=True, room=right - left - 15)
    size = f"{question.workers} x {question.gpus:g} GPU" + ("s" if question.gpus > 1 else "")
    kind = question.workload_class.replace("_", " ")
    _text(pen, (left, top + 17), f"{kind}, {size}, estimate {_duration(question.estimate_s)}", 11, room=right - left)
    waits = f"waited {_duration(now - question.submit_s)}, latest start {_signed(question.latest_start_s - now)}"
    _text(pen, (left, top + 32), f"{waits}, due {_signed(question.deadline_s - now)}", 11, room=right - left)
    y = top + 50
    for words, x in (("action", left), ("expected USD", right - 108), ("kWh", right - 56), ("start", right)):
        _text(pen, (x, y), words, 10, GREY, anchor="la" if x == left else "ra")
    priced = [candidate for candidate in question.candidates if candidate.usd is not None]
    order = sorted(priced, key=lambda candidate: candidate.usd) or list(question.candidates)
    shown = order[: min(SHOWN_CANDIDATES, max((SIDE[3] - y - 28) // 14, 1))]
    for row, candidate in enumerate(shown):
        line = y + 14 + 14 * row
        best = row == 0 and candidate.usd is not None
        if best:
            pen.rectangle((left - 3, line - 1, right + 2, line + 13), fill=(223, 238, 226))
        _text(pen, (left, line), candidate.label, 11, bold=best, room=right - left - 156)
        if candidate.usd is not None:
            _text(pen, (right - 108, line), f"{candidate.usd:,.3f}", 11, anchor="ra")
            _text(pen, (right - 56, line), f"{candidate.kwh:,.2f}", 11, anchor="ra")
            delay = candidate.start_s - now
            _text(pen, (right, line), "now" if delay <= 0 else f"+{_duration(delay)}", 11, anchor="ra")
    if len(order) > len(shown):
        _text(pen, (left, y + 14 + 14 * len(shown)), f"and {len(order) - len(shown)} dearer", 10, GREY)


def _signed(seconds: int) -> str:
    return f"in {_duration(seconds)}" if seconds >= 0 else f"{_duration(-seconds)} ago"


# ---------------------------------------------------------------- price and carbon


def _strip(pen, scene: Scene) -> None:
    left, top, right, bottom = STRIP
    pen.line((left, top - 8, right, top - 8), fill=FAINT)
    middle = (left + right) // 2
    _chart(pen, scene, "price, USD/kWh", [site.usd_per_kwh for site in scene.sites], (left, top, middle - 12, bottom))
    _chart(pen, scene, "carbon intensity, g CO2e/kWh", [site.g_per_kwh for site in scene.sites], (middle + 12, top, right, bottom))


def _chart(pen, scene: Scene, title: str, series: list[np.ndarray], box: Box) -> None:
    """Steps of the last day, now, and the forecast of the next day on a shaded ground."""
    left, top, right, bottom = box[0] + 46, box[1] + 18, box[2], box[3] - 16
    _text(pen, (box[0], box[1] - 2), title, 12, bold=True)
    low, high = min(float(one.min()) for one in series), max(float(one.max()) for one in series)
    low, high = (low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else (low - 0.5 * abs(low) - 1e-3, high * 1.5 + 1e-3)
    steps = len(series[0])
    day = steps // 2
    within = scene.time_s % scene.step_s / scene.step_s

    def x_of(step: float) -> float:
        return left + step / steps * (right - left)

    def y_of(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    pen.rectangle((x_of(day), top, right, bottom), fill=(238, 240, 246))
    pen.rectangle((left, top, right, bottom), outline=FAINT)
    for value in (low, (low + high) / 2, high):
        _text(pen, (left - 4, y_of(value)), f"{value:.3g}", 10, GREY, anchor="rm")
    if low < 0 < high:
        pen.line((left, y_of(0.0), right, y_of(0.0)), fill=GREY)
    for row, values in enumerate(series):
        points = [(x_of(step + end), y_of(float(value))) for step, value in enumerate(values) for end in (0, 1)]
        pen.line(points, fill=SITE_COLOURS[row % len(SITE_COLOURS)], width=2 * (len(series) - row))
    at = x_of(day - 1 + within)
    pen.line((at, top - 3, at, bottom), fill=INK)
    _text(pen, (at, bottom + 2), "now", 10, INK, bold=True, anchor="ma")
    for step, words in ((0, "24 h ago"), (day * 1.5, "forecast: the last 24 h again")):
        _text(pen, (x_of(step), bottom + 2), words, 10, GREY, anchor="la" if step == 0 else "ma")
    x = box[0] + 210
    for row, site in enumerate(scene.sites[:4]):
        x = _key(pen, x, box[1], f"{site.name} {series[row][day - 1]:.3g}", SITE_COLOURS[row % len(SITE_COLOURS)], 11) + 10


def _legend(pen) -> None:
    y = HEIGHT - 36
    pen.line((14, y - 6, 946, y - 6), fill=FAINT)
    x = 14.0
    _text(pen, (x, y), "nodes:", 11, bold=True)
    x += 62
    for mode, name in enumerate(STATE_NAMES):
        x = _key(pen, x, y, name, STATE_COLOURS[mode], 11) + 14
    x = 14.0
    _text(pen, (x, y + 17), "GPUs:", 11, bold=True)
    x += 62
    for name, colour in (("free", FREE_GPU), *CLASS_COLOURS.items()):
        x = _key(pen, x, y + 17, name.replace("_", " "), colour, 11) + 14
    _text(pen, (946, y), "a part-filled GPU is shared; a job's GPUs are taken while its nodes wake", 10, GREY, anchor="ra")


def _key(pen, x: float, y: float, words: str, colour, size: int) -> float:
    """A coloured square and its meaning; where it ends."""
    pen.rectangle((x, y + 2, x + size - 2, y + size), fill=colour, outline=GREY)
    _text(pen, (x + size + 3, y), words, size)
    return x + size + 3 + _font(size).getlength(words)
