"""Original files made from the converted tables, laid out as a mirror of the repositories: ``repository/commit/path``."""

from __future__ import annotations

import json

import pandas as pd

from telemetry.originals import GAVEL_COLUMNS, SERVEGEN_COLUMNS, WEATHER_PLACE


def write_originals(mirror, trace, file, source):
    """Write what ``file`` is made from; ``source`` is the file as our readers take it."""
    folder = mirror / trace.origin["repository"] / trace.origin["commit"]
    names = file.originals()
    for (_, path), text in zip(names, _texts(file, source), strict=True):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())


def _texts(file, source):
    if file.conversion == "copy":
        return [source.read_bytes()]
    return MAKERS[file.conversion](pd.read_parquet(source), file)


def _csv(table, file):
    if not file.each:
        return [_plain(table)]
    column = file.label or "Zone Id"
    parts = []
    for values in file.each:
        part = table[table[column] == values[0]]
        if len(values) > 1:
            time = next(name for name in part.columns if name.startswith("Datetime (UTC)"))
            part = part[part[time].str[:4] == values[1]]
        parts.append(_plain(part.drop(columns=file.label) if file.label else part))
    return parts


def _plain(table):
    return table.to_csv(index=False)


def _gavel_traces(table, file):
    table = table.assign(command="cd %s && python3 main.py ")
    return [
        table.loc[table["vc"] == vc, list(GAVEL_COLUMNS)].to_csv(sep="\t", header=False, index=False, float_format="%.6f")
        for (vc,) in file.each
    ]


def _gavel_throughputs(table, file):
    tree = {}
    for worker, job, scale, rate in table.itertuples(index=False):
        tree.setdefault(worker, {})[f"('{job}', {scale})"] = {"null": rate, "('A3C', 1)": [1.0, 2.0]}
    return [json.dumps(tree)]


def _json_lines(table, file):
    rows = [{**row, "hash_ids": [int(n) for n in row["hash_ids"]]} for row in table.to_dict("records")]
    return ["".join(json.dumps(row) + "\n" for row in rows)]


def _servegen_rates(table, file):
    return [table.loc[table["chunk"] == int(n), list(SERVEGEN_COLUMNS)].to_csv(header=False, index=False) for (n,) in file.each]


def _servegen_histograms(table, file):
    texts = []
    for (number,) in file.each:
        tree = {}
        for _, window, field, histogram in table[table["chunk"] == int(number)].itertuples(index=False):
            tree.setdefault(str(window), {})[field] = histogram
        texts.append(json.dumps(tree))
    return texts


def _open_meteo(table, file):
    texts = []
    for zone, year in file.each:
        part = table[(table["zone"] == zone) & (table["time"].str[:4] == year)]
        hourly = part.drop(columns=["zone", *WEATHER_PLACE]).to_dict("list")
        texts.append(json.dumps({**part.iloc[0][list(WEATHER_PLACE)].to_dict(), "hourly": hourly}))
    return texts


MAKERS = {
    "csv": _csv,
    "gavel_traces": _gavel_traces,
    "gavel_throughputs": _gavel_throughputs,
    "json_lines": _json_lines,
    "servegen_rates": _servegen_rates,
    "servegen_histograms": _servegen_histograms,
    "open_meteo": _open_meteo,
}
