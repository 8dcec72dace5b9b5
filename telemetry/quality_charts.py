"""Charts of the quality report as inline SVG: devices by time, and the gaps of each device."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

WIDTH, LEFT, ROW, TOP, FOOT = 1080, 220, 17, 8, 26
MAX_ROWS, MAX_COLUMNS = 40, 120
PALE, DARK = (253, 226, 200), (158, 16, 62)
HOUR = np.timedelta64(1, "h")


def heat_map(when: Mapping[str, Mapping[str, Mapping[str, int]]]) -> str:
    """Flaws of each device (the ``MAX_ROWS`` with most) over time; colour is the logarithm of the count. '' without a time.

    Args:
        when: device -> flaw -> hour or day -> count.
    """
    totals = {device: sum(n for hours in flaws.values() for n in hours.values()) for device, flaws in when.items()}
    devices = sorted(totals, key=lambda name: (-totals[name], name))[:MAX_ROWS]
    stamps = [_hour(text) for flaws in when.values() for hours in flaws.values() for text in hours]
    if not stamps:
        return ""
    start, width, columns = _columns(min(stamps), max(stamps) + HOUR, days=any(len(t) == 10 for t in _texts(when)))
    cells: dict[tuple[int, int], dict[str, int]] = {}
    for row, device in enumerate(devices):
        for flaw, hours in when[device].items():
            for text, count in hours.items():
                cell = cells.setdefault((row, int((_hour(text) - start) // width)), {})
                cell[flaw] = cell.get(flaw, 0) + count
    most = max(sum(cell.values()) for cell in cells.values())
    step = (WIDTH - LEFT) / columns
    parts = _frame(devices, len(when) - len(devices), start, width * columns)
    for (row, column), flaws in sorted(cells.items()):
        told = f"{devices[row] or '(file)'}, {_time(start + column * width)}: " + ", ".join(f"{f} {n:,}" for f, n in sorted(flaws.items()))
        parts.append(
            f'<rect x="{LEFT + column * step:.1f}" y="{TOP + row * ROW + 1}" width="{max(step - 0.6, 1):.1f}" height="{ROW - 2}" '
            f'rx="1.5" fill="{_colour(sum(flaws.values()), most)}"><title>{html.escape(told)}</title></rect>'
        )
    return _svg(parts, len(devices), "Flaws of each device over time") + _legend(most, width)


def gap_lines(gaps: Sequence[Mapping[str, Any]]) -> str:
    """Gaps of each device (the ``MAX_ROWS`` with most missing) as bars from the sample before to the sample after. '' without a gap."""
    if not gaps:
        return ""
    missing: dict[str, int] = {}
    for gap in gaps:
        missing[gap["device"]] = missing.get(gap["device"], 0) + gap["samples"]
    devices = sorted(missing, key=lambda name: (-missing[name], name))[:MAX_ROWS]
    start, end = min(_second(gap["start"]) for gap in gaps), max(_second(gap["end"]) for gap in gaps)
    span = max((end - start) / np.timedelta64(1, "s"), 1.0)
    parts = _frame(devices, len(missing) - len(devices), start, end - start)
    for gap in gaps:
        if gap["device"] in devices:
            x, y = (LEFT + (WIDTH - LEFT) * ((_second(gap[key]) - start) / np.timedelta64(1, "s")) / span for key in ("start", "end"))
            told = f"{gap['device']}, {gap['metric']}: {gap['start']} to {gap['end']}, {gap['samples']:,} missing"
            kind = "filled" if gap["filled"] else "open"
            parts.append(
                f'<rect x="{x:.1f}" y="{TOP + devices.index(gap["device"]) * ROW + 4}" width="{max(y - x, 2):.1f}" height="{ROW - 8}" '
                f'rx="2" class="{kind}"><title>{html.escape(told)}{", filled" if gap["filled"] else ""}</title></rect>'
            )
    return _svg(parts, len(devices), "Gaps of each device")


def _frame(devices: Sequence[str], hidden: int, start: np.datetime64, span: np.timedelta64) -> list[str]:
    """Names, stripes and the axis of time."""
    bottom = TOP + len(devices) * ROW
    parts = []
    for row, device in enumerate(devices):
        y = TOP + row * ROW
        shown = device or "(file)"
        shown = shown if len(shown) <= 32 else f"{shown[:15]}\u2026{shown[-16:]}"
        parts.append(f'<rect x="{LEFT}" y="{y + 1}" width="{WIDTH - LEFT}" height="{ROW - 2}" class="stripe"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + ROW - 5}" text-anchor="end">{html.escape(shown)}</text>')
    ticks, digits = 6, 10 if span > np.timedelta64(14, "D") else 16
    for tick in range(ticks + 1):
        x = LEFT + (WIDTH - LEFT) * tick / ticks
        anchor = "start" if tick == 0 else "end" if tick == ticks else "middle"
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{bottom + 4}" class="tick"/>')
        at = start + (span.astype("timedelta64[s]") * tick) // ticks
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="{anchor}">{_time(at)[:digits]}</text>')
    if hidden > 0:
        parts.append(f'<text x="{LEFT - 8}" y="{bottom + 18}" text-anchor="end" class="more">{hidden:,} more with fewer</text>')
    return parts


def _svg(parts: Sequence[str], rows: int, title: str) -> str:
    height = TOP + rows * ROW + FOOT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{title}">'
        + "".join(parts)
        + "</svg>"
    )


def _legend(most: int, width: np.timedelta64) -> str:
    values = sorted({1, *(round(most ** (k / 4)) for k in range(5))})
    boxes = "".join(f'<span><i style="background:{_colour(value, most)}"></i>{value:,}</span>' for value in values)
    hours = int(width / HOUR)
    return f'<p class="legend">flaws in {f"{hours // 24} d" if hours % 24 == 0 else f"{hours} h"}: {boxes}</p>'


def _columns(start: np.datetime64, end: np.datetime64, *, days: bool) -> tuple[np.datetime64, np.timedelta64, int]:
    """First time, width and number of columns: whole hours or days, at most ``MAX_COLUMNS``."""
    hours = max(int((end - start) / HOUR), 1)
    width = math.ceil(hours / MAX_COLUMNS)
    width = 24 * math.ceil(width / 24) if days or width > 12 else next(size for size in (1, 2, 3, 4, 6, 12) if size >= width)
    if width >= 24:
        start = start.astype("datetime64[D]").astype("datetime64[h]")
    return start, width * HOUR, max(math.ceil((end - start) / (width * HOUR)), 1)


def _texts(when: Mapping[str, Mapping[str, Mapping[str, int]]]) -> list[str]:
    return [text for flaws in when.values() for hours in flaws.values() for text in hours]


def _hour(text: str) -> np.datetime64:
    return np.datetime64(text, "h")


def _second(text: str) -> np.datetime64:
    return np.datetime64(text.rstrip("Z"), "s")


def _time(at: np.datetime64) -> str:
    return str(at.astype("datetime64[m]")).replace("T", " ")


def _colour(count: int, most: int) -> str:
    share = math.log1p(count - 1) / math.log1p(most - 1) if most > 1 else 1.0
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(PALE, DARK, strict=True))
    return f"#{red:02x}{green:02x}{blue:02x}"
