"""The chart of nodes: runs as bars on their GPUs where they can be told apart, else a raster of the busiest class by node and time."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from envs.replay.episode import Episode
from envs.replay.history import AWAKE, DOWN, SLEEPING, WAKING
from envs.replay.lanes import RASTER_COLUMNS, bars_of, drawn_in_detail, raster_of
from envs.replay.power import bin_edges
from envs.replay.style import ALARM, CLASS_COLOURS, INK, LABELS, MUTED, STATE_COLOURS, lasting, level_strength, paler, words
from envs.replay.timeline import Clock
from telemetry.classes import WORKLOAD_CLASSES

STATES = (AWAKE, WAKING, SLEEPING, DOWN)
HOVER_POINTS = 15_000
SHADES = (0.35, 0.7, 1.0)  # a raster cell busy up to a third, two thirds, all


def draw_gantt(figure: go.Figure, episode: Episode, clock: Clock, row: int, height_px: int) -> list[str]:
    """Draw into a row of the figure; returns what was aggregated, in words."""
    if drawn_in_detail(episode):
        bars = bars_of(episode)
        _states(figure, episode, clock, row)
        _runs(figure, episode, bars, clock, row)
        _node_axis(figure, episode, row, height_px)
        return []
    return _raster(figure, episode, clock, row)


def _shapes(clock: Clock, begin: np.ndarray, end: np.ndarray, low: np.ndarray, high: np.ndarray) -> dict[str, np.ndarray]:
    """Rectangles as one path with gaps."""
    x = np.empty((len(begin), 5), dtype=object)
    x[:, 0] = x[:, 3] = clock.at(begin)
    x[:, 1] = x[:, 2] = clock.at(end)
    y = np.stack([low, low, high, high, np.full(len(low), np.nan)], axis=1)
    return {"x": x.ravel(), "y": y.ravel().astype(np.float32)}


def _area(figure: go.Figure, path: dict[str, Any], row: int, *, fill: str, line: dict[str, Any] | None = None, **more: Any) -> None:
    figure.add_scatter(
        **path, mode="lines", fill="toself", fillcolor=fill, line=line or {"width": 0}, hoverinfo="skip", row=row, col=1, **more
    )


def _states(figure: go.Figure, episode: Episode, clock: Clock, row: int) -> None:
    nodes = episode.history.nodes
    for state in (SLEEPING, WAKING, DOWN):
        spans = nodes[nodes["state"] == state]
        if spans.empty:
            continue
        node = spans["node"].to_numpy(dtype=float)
        path = _shapes(clock, spans["begin_s"].to_numpy(), spans["end_s"].to_numpy(), node, node + 1)
        _area(figure, path, row, fill=STATE_COLOURS[state], name=LABELS[state], legendgroup=state)


def _runs(figure: go.Figure, episode: Episode, bars: pd.DataFrame, clock: Clock, row: int) -> None:
    classes = episode.facts.jobs["workload_class"].to_numpy()[bars["job"].to_numpy(dtype=np.int64)]
    fractions = episode.facts.level_fractions
    for name, colour in CLASS_COLOURS.items():
        first = True
        for level in range(-1, len(fractions)):
            part = bars[(classes == name) & (bars["level"].to_numpy() == level)]
            if part.empty:
                continue
            path = _shapes(clock, *(part[column].to_numpy() for column in ("begin_s", "end_s", "low", "high")))
            fill = "rgba(255,255,255,0.6)" if level < 0 else paler(colour, level_strength(len(fractions), level))
            edge = {"width": 1.0, "color": colour} if level < 0 else {"width": 0.6, "color": paler(colour, 0.85)}
            _area(figure, path, row, fill=fill, line=edge, legendgroup=name, showlegend=False)
            first = False
        if not first:
            figure.add_scatter(
                x=[None],
                y=[None],
                mode="markers",
                marker={"symbol": "square", "size": 11, "color": colour},
                name=words(name),
                legendgroup=name,
                row=row,
                col=1,
            )
    _hover(figure, episode, bars, clock, row)
    _late(figure, episode, bars, clock, row)


def _hover(figure: go.Figure, episode: Episode, bars: pd.DataFrame, clock: Clock, row: int) -> None:
    """Unseen points along the bars carry their words: one for a short bar, one every so often for a long one."""
    length = (bars["end_s"] - bars["begin_s"]).to_numpy()
    spacing = max(1.0, episode.history.end_s / 80, length.sum() / HOVER_POINTS)
    points = np.maximum(1, np.rint(length / spacing)).astype(int)
    of = np.repeat(np.arange(len(bars)), points)
    place = np.arange(len(of)) - np.repeat(np.cumsum(points) - points, points)
    at = bars["begin_s"].to_numpy()[of] + length[of] * (place + 0.5) / points[of]
    text = np.array(_bar_words(episode, bars), dtype=object)
    figure.add_scatter(
        x=clock.at(at),
        y=((bars["low"] + bars["high"]) / 2).to_numpy()[of],
        mode="lines",
        line={"width": 0, "color": MUTED},
        text=text[of],
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        row=row,
        col=1,
    )


def _bar_words(episode: Episode, bars: pd.DataFrame) -> list[str]:
    jobs, found, names = episode.facts.jobs, episode.found.jobs, episode.facts.node_names
    told = {}
    for job in bars["job"].unique():
        work, done = jobs.iloc[job], found.iloc[job]
        flags = [text for name, text in (("late_start", "started late"), ("missed_deadline", "missed its deadline")) if done[name]]
        told[job] = (
            f"<b>{work['job_id']}</b> {words(work['workload_class'])}, {work['workers']} x {work['gpu_milli'] / 1000:g} GPU"
            f"<br>waited {lasting(done['wait_s'])}, ended after {lasting(done['end_s'] - work['submit_s'])}"
            f"<br>{done['energy_kwh']:,.2f} kWh, {done['cost_usd']:,.2f} USD" + (f"<br>{' and '.join(flags)}" if flags else "")
        )
    shares = [f"{100 * fraction:g} % power limit" for fraction in episode.facts.level_fractions]
    return [
        f"{told[job]}<br>{names[node]}, {shares[level] if level >= 0 else 'placed, not started yet'}, {lasting(end - begin)}"
        for job, node, level, begin, end in bars[["job", "node", "level", "begin_s", "end_s"]].to_numpy()
    ]


def _late(figure: go.Figure, episode: Episode, bars: pd.DataFrame, clock: Clock, row: int) -> None:
    """A mark at the end of each late job on its first node, and at the start of each that started late."""
    last = bars.sort_values("end_s").drop_duplicates("job", keep="last").set_index("job")
    for column, at, symbol, name in (
        ("missed_deadline", "end_s", "x-thin", "missed its deadline"),
        ("late_start", "start_s", "line-ns", "started late"),
    ):
        late = np.flatnonzero(episode.found.jobs[column] & episode.found.jobs.index.isin(last.index))[:2000]
        if not len(late):
            continue
        figure.add_scatter(
            x=clock.at(episode.found.jobs[at].to_numpy()[late]),
            y=((last["low"] + last["high"]) / 2).loc[late].to_numpy(),
            mode="markers",
            marker={"symbol": symbol, "size": 7, "color": ALARM, "line": {"width": 1.6, "color": ALARM}},
            name=name,
            hoverinfo="skip",
            row=row,
            col=1,
        )


def _node_axis(figure: go.Figure, episode: Episode, row: int, height_px: int) -> None:
    names, pools = episode.facts.node_names, episode.facts.pools
    every = max(1, -(-15 * len(names) // height_px))
    edges = np.concatenate([[0], np.cumsum(pools["nodes"])])
    shown = [n for first, end in pairwise(edges) for n in range(first, end, every) if n == first or end - n >= 0.8 * every]
    figure.update_yaxes(
        tickvals=[node + 0.5 for node in shown],
        ticktext=[names[node] for node in shown],
        range=[len(names), 0],
        showgrid=False,
        row=row,
        col=1,
    )
    for first in edges[1:-1]:
        figure.add_hline(y=float(first), line={"color": INK, "width": 1}, row=row, col=1)


# ---------------------------------------------------------------- raster


def _raster(figure: go.Figure, episode: Episode, clock: Clock, row: int) -> list[str]:
    raster = raster_of(episode, bin_edges(episode.history.end_s, RASTER_COLUMNS), STATES)
    shade = np.searchsorted((1 / 3, 2 / 3), raster.busy)
    value = np.where(raster.kind < 0, raster.state, len(STATES) + len(SHADES) * raster.kind + shade).astype(np.uint8)
    palette = [STATE_COLOURS[state] for state in STATES]
    palette += [paler(CLASS_COLOURS[name], strength) for name in WORKLOAD_CLASSES for strength in SHADES]
    scale = [(edge / len(palette), colour) for index, colour in enumerate(palette) for edge in (index, index + 1)]
    step = int(raster.edges[1] - raster.edges[0])
    figure.add_heatmap(
        z=value,
        x0=clock.at([step / 2])[0],
        dx=1000 * step,
        y0=0.5,
        dy=1,
        zmin=-0.5,
        zmax=len(palette) - 0.5,
        colorscale=scale,
        showscale=False,
        customdata=np.rint(100 * raster.busy).astype(np.uint8),
        hovertemplate="%{x|%a %d %b %H:%M}: %{customdata} % of its GPUs busy<extra></extra>",
        row=row,
        col=1,
    )
    for name, colour in CLASS_COLOURS.items():
        if (raster.kind == WORKLOAD_CLASSES.index(name)).any():
            _swatch(figure, row, words(name), colour, name)
    for state in (SLEEPING, WAKING, DOWN):
        if (raster.state == STATES.index(state)).any():
            _swatch(figure, row, LABELS[state], STATE_COLOURS[state], state)
    rows = np.arange(len(raster.names))
    every = max(1, len(rows) // 40)
    figure.update_yaxes(
        tickvals=(rows + 0.5)[::every], ticktext=raster.names[::every], range=[len(rows), 0], showgrid=False, row=row, col=1
    )
    for first in raster.first_of_pool[1:]:
        figure.add_hline(y=float(first), line={"color": INK, "width": 1}, row=row, col=1)
    return [_raster_words(episode, raster.nodes_per_row, step)]


def _swatch(figure: go.Figure, row: int, name: str, colour: str, group: str) -> None:
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        marker={"symbol": "square", "size": 11, "color": colour, "line": {"width": 0.5, "color": MUTED}},
        name=name,
        legendgroup=group,
        row=row,
        col=1,
    )


def _raster_words(episode: Episode, nodes_per_row: int, step: int) -> str:
    what = f"{len(episode.facts.jobs):,} jobs on {len(episode.facts.node_pool):,} nodes are too many to draw one by one"
    rows = "one row is one node" if nodes_per_row == 1 else f"one row is up to {nodes_per_row} neighbouring nodes of a pool"
    if episode.seats is None:
        what, rows = f"The node rule '{episode.facts.settings.node_rule}' cannot be applied again from the log", "one row is one pool"
    return (
        f"{what}: {rows}, one column {lasting(step)}; the colour names the class that held most GPU time, its strength how busy the GPUs "
        "were (up to a third, two thirds, all); empty cells show the state of the nodes. Power levels are in segments.parquet."
    )
