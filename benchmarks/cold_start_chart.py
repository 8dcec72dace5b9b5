"""The chart of ``benchmarks/cold_start.py``: loss and coverage by length of history."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

MODE_STYLES = {"joined": "-", "alone": ":"}


def draw(results: dict[str, dict[str, Any]], lengths: tuple[int, ...], modes: tuple[str, ...]) -> Figure:
    """One column a data set; above WQL against the better naive, below coverage of q10 to q90."""
    figure = Figure(figsize=(4.2 * len(results), 7.0), layout="constrained")
    axes = figure.subplots(2, len(results), sharex=True, squeeze=False)
    for column, (name, result) in enumerate(results.items()):
        for mode in modes:
            members = [m for m in result[mode][str(lengths[0])]["forecasters"] if m != "seasonal_naive"]
            for number, member in enumerate(members):
                cells = [result[mode][str(length)]["forecasters"][member] for length in lengths]
                style = {"color": f"C{number}", "linestyle": MODE_STYLES[mode], "marker": "o", "markersize": 3}
                label = f"{member}, {mode}"
                axes[0, column].plot(lengths, [c["wql_ratio"] for c in cells], label=label, **style)
                axes[1, column].plot(lengths, [c["coverage80"] for c in cells], **style)
        axes[0, column].axhline(1.0, color="0.6", linewidth=0.8)
        axes[0, column].set_title(f"{name} ({result['series']} series)")
        axes[0, column].set_ylim(0.4, 1.4)
        axes[1, column].axhspan(0.78, 0.82, color="0.85")
        axes[1, column].set_ylim(0.0, 1.0)
        axes[1, column].set_xlabel("rows of history (10 minutes each)")
        axes[1, column].set_xscale("log")
    axes[0, 0].set_ylabel("WQL / better naive")
    axes[1, 0].set_ylabel("coverage of q10 to q90")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    return figure
