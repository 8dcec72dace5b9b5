"""The figure of the replay page: one time axis for nodes, missed objectives, power, cost, carbon and the grid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from envs.replay.causes import CAUSES, REJECTIONS
from envs.replay.episode import Episode
from envs.replay.gantt import draw_gantt
from envs.replay.power import CATEGORIES
from envs.replay.style import ALARM, CATEGORY_COLOURS, CLASS_COLOURS, INK, LABELS, MUTED, RULE, SITE_COLOURS, lasting, words
from envs.replay.timeline import Clock

MOST_MARKS = 2000
NOTHING = "no objective missed"
GAP_PX, TOP_PX, BOTTOM_PX = 58, 110, 40
TICKS = ((86_400_000, "%H:%M\u2009 %d %b"), (None, "%a %d %b %Y"))  # shorter than a day between ticks, longer
MOST_MENU_SITES = 6
PANELS = ("nodes", "misses", "power", "cost", "carbon", "price", "intensity")
RATES = (("power", "it_kwh", 1.0, "kW"), ("cost", "cost_usd", 1.0, "USD/h"), ("carbon", "carbon_kg", 1.0, "kg/h"))


def figure_of(episode: Episode) -> tuple[go.Figure, list[str]]:
    """The figure, and what was left out or aggregated in it, in words."""
    clock = Clock(episode.facts.window_start)
    nodes_px = int(np.clip(10 * len(episode.facts.node_pool), 260, 900))
    causes = list(dict.fromkeys(episode.misses["cause"]))
    heights = {
        "nodes": nodes_px,
        "misses": 40 + 22 * max(1, len(causes)),
        "power": 230,
        "cost": 150,
        "carbon": 150,
        "price": 110,
        "intensity": 110,
    }
    titles = (
        "Nodes and what ran on them",
        "Missed objectives, each at the moment it was lost, by its main cause",
        "IT power by what drew it, kW (line: with PUE)",
        "Cost by what drew the power, USD per hour",
        "Carbon by what drew the power, kg CO2e per hour",
        "Electricity price, USD per kWh",
        "Carbon intensity, g CO2e per kWh",
    )
    figure = make_subplots(
        rows=len(PANELS),
        cols=1,
        shared_xaxes=True,
        vertical_spacing=GAP_PX / _plot_px(heights),
        row_heights=[heights[name] for name in PANELS],
        subplot_titles=titles,
    )
    notes = draw_gantt(figure, episode, clock, PANELS.index("nodes") + 1, nodes_px)
    notes += _marks(figure, episode, clock, causes)
    _rates(figure, episode, clock)
    _grid(figure, episode, clock)
    _layout(figure, episode, clock, _plot_px(heights))
    return figure, notes


def _plot_px(heights: dict[str, int]) -> int:
    return sum(heights.values()) + GAP_PX * (len(heights) - 1)


def _row(name: str) -> dict[str, int]:
    return {"row": PANELS.index(name) + 1, "col": 1}


def _marks(figure: go.Figure, episode: Episode, clock: Clock, causes: list[str]) -> list[str]:
    misses = episode.misses.head(MOST_MARKS)
    for name, colour in CLASS_COLOURS.items():
        part = misses[misses["workload_class"] == name]
        if part.empty:
            continue
        text = [_mark_text(row) for row in part.to_dict("records")]
        symbol = part["miss"].map({"rejected": "x", "late_start": "triangle-up", "missed_deadline": "circle"})
        figure.add_scatter(
            x=clock.at(part["at_s"]),
            y=[words(cause) for cause in part["cause"]],
            mode="markers",
            marker={"color": colour, "size": 8, "symbol": symbol, "opacity": 0.75},
            text=text,
            hovertemplate="%{text}<extra></extra>",
            legendgroup=name,
            showlegend=False,
            **_row("misses"),
        )
    order = [words(cause) for cause in reversed(causes)]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=order or [NOTHING], **_row("misses"))
    if not len(misses):
        figure.add_scatter(x=clock.at([0]), y=[NOTHING], mode="text", text=[""], showlegend=False, hoverinfo="skip", **_row("misses"))
    left = len(episode.misses) - len(misses)
    return [f"The {MOST_MARKS:,} costliest missed objectives are marked; {left:,} more are in misses.parquet."] if left else []


def _mark_text(row: dict[str, Any]) -> str:
    told = CAUSES.get(row["cause"]) or REJECTIONS.get(row["cause"], "")
    over = "" if row["miss"] == "rejected" else f" by {lasting(row['over_s'])}"
    return f"<b>{row['job_id']}</b> ({words(row['workload_class'])}): {words(row['miss'])}{over}<br>{words(row['cause'])}: {told}"


# ---------------------------------------------------------------- rates


def _rates(figure: go.Figure, episode: Episode, clock: Clock) -> None:
    """Stacks for all sites together, and hidden ones for each site that the menu shows."""
    sites = list(episode.facts.sites)
    views = [None, *sites] if 1 < len(sites) <= MOST_MENU_SITES else [None]
    known = {name for name in CATEGORIES if (episode.power.loc[episode.power["category"] == name, "it_kwh"] != 0).any()}
    shown: list[tuple[int, str | None]] = []
    for view in views:
        table = episode.power if view is None else episode.power[episode.power["site"] == view]
        for panel, unit, _factor, _label in RATES:
            for name in (name for name in CATEGORIES if name in known):
                shown.append((len(figure.data), view))
                _stack(figure, clock, table[table["category"] == name], panel, unit, name, view is None)
        shown.append((len(figure.data), view))
        _facility(figure, clock, table, view is None)
    if len(views) > 1:
        top = figure.layout[f"yaxis{PANELS.index('power') + 1}"].domain[1]
        figure.update_layout(updatemenus=[_menu(views, shown, top)])


def _mean_rate(table: pd.DataFrame, unit: str) -> tuple[np.ndarray, int]:
    """Amount per hour in each bin, the last repeated, and the bins' seconds."""
    sums = table.groupby(["begin_s", "end_s"], as_index=False)[unit].sum()
    hours = (sums["end_s"] - sums["begin_s"]).to_numpy() / 3600.0
    rate = sums[unit].to_numpy() / hours
    step = int(sums["begin_s"].iloc[1] - sums["begin_s"].iloc[0]) if len(sums) > 1 else int(sums["end_s"].iloc[0])
    return np.append(rate, rate[-1]).astype(np.float32), step


def _stack(figure: go.Figure, clock: Clock, table: pd.DataFrame, panel: str, unit: str, name: str, visible: bool) -> None:
    rate, step = _mean_rate(table, unit)
    unit_label = {key: label for _, key, _, label in RATES}[unit]
    figure.add_scatter(
        x0=clock.start,
        dx=1000 * step,
        y=rate,
        stackgroup=f"{panel}{'' if visible else ' site'}",
        mode="lines",
        line={"width": 0, "shape": "hv"},
        fillcolor=CATEGORY_COLOURS[name],
        name=LABELS.get(name, words(name)),
        legendgroup=name,
        showlegend=visible and panel == "power" and name not in (*CLASS_COLOURS, "waking", "sleeping"),
        visible=visible,
        hovertemplate=f"%{{y:,.2f}} {unit_label}<extra>{LABELS.get(name, words(name))}</extra>",
        **_row(panel),
    )


def _facility(figure: go.Figure, clock: Clock, table: pd.DataFrame, visible: bool) -> None:
    rate, step = _mean_rate(table, "energy_kwh")
    figure.add_scatter(
        x0=clock.start,
        dx=1000 * step,
        y=rate,
        mode="lines",
        line={"width": 1.2, "shape": "hv", "color": INK},
        name="with PUE",
        visible=visible,
        showlegend=visible,
        hovertemplate="%{y:,.2f} kW<extra>with PUE</extra>",
        **_row("power"),
    )


def _menu(views: list[str | None], shown: list[tuple[int, str | None]], top: float) -> dict[str, Any]:
    """Which sites the stacks show; beside the title of the first stack."""
    traces = [trace for trace, _ in shown]
    visible = {view: [of == view for _, of in shown] for view in views}
    buttons = [{"label": view or "all sites", "method": "restyle", "args": [{"visible": visible[view]}, traces]} for view in views]
    return {"buttons": buttons, "x": 1.0, "xanchor": "right", "y": top, "yanchor": "bottom", "pad": {"b": 3}, "font": {"size": 11}}


def _grid(figure: go.Figure, episode: Episode, clock: Clock) -> None:
    facts = episode.facts
    steps = min(-(-episode.history.end_s // facts.step_s) + 1, int(facts.grid["step"].max()) + 1)
    last = max(steps, -(-episode.history.end_s // facts.step_s) + 1)
    for panel, column, factor, form in (("price", "price_usd_per_kwh", 1.0, ".4f"), ("intensity", "carbon_kg_per_kwh", 1000.0, ",.0f")):
        for index, site in enumerate(facts.sites):
            rows = facts.grid[(facts.grid["site"] == index) & (facts.grid["step"] < steps)].sort_values("step")
            values = np.pad(rows[column].to_numpy() * factor, (0, last - len(rows)), mode="edge")  # the last step is held
            figure.add_scatter(
                x0=clock.start,
                dx=1000 * facts.step_s,
                y=values.astype(np.float32),
                mode="lines",
                line={"shape": "hv", "width": 1.5, "color": SITE_COLOURS[index % len(SITE_COLOURS)]},
                name=f"site {site}",
                legendgroup=f"site {site}",
                showlegend=panel == "price",
                hovertemplate=f"%{{y:{form}}}<extra>{site}</extra>",
                **_row(panel),
            )


def _layout(figure: go.Figure, episode: Episode, clock: Clock, height: int) -> None:
    end = clock.at([max(1, episode.history.end_s)])[0]
    figure.update_layout(
        height=height + TOP_PX + BOTTOM_PX,
        margin={"l": 150, "r": 20, "t": TOP_PX, "b": BOTTOM_PX},
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        legend={"orientation": "h", "x": 0, "y": 1.0 + 30 / height, "yanchor": "bottom", "tracegroupgap": 0, "font": {"size": 11}},
        hovermode="closest",
        hoverlabel={"bgcolor": "#FFFFFF", "font": {"size": 12, "color": INK}, "align": "left"},
    )
    figure.update_xaxes(range=[clock.start, end], showgrid=True, gridcolor=RULE, showticklabels=True, ticks="outside", tickcolor=MUTED)
    stops = [{"dtickrange": [None, TICKS[0][0] - 1], "value": TICKS[0][1]}, {"dtickrange": [TICKS[0][0], None], "value": TICKS[1][1]}]
    figure.update_xaxes(tickformatstops=stops, hoverformat="%a %d %b %Y %H:%M")
    figure.update_yaxes(gridcolor=RULE, zeroline=False, fixedrange=True)
    figure.update_yaxes(fixedrange=False, **_row("nodes"))
    figure.update_yaxes(rangemode="tozero", **_row("power"))
    for note in figure.layout.annotations:
        note.update(x=0, xanchor="left", font={"size": 13, "color": ALARM if note.text.startswith("Missed") else INK})
