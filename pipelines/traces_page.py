"""The page ``docs/traces.md``: every public trace, how to bring it, and the worlds that can be made from it."""

from __future__ import annotations

from pipelines.origins import COPY, FetchFile, TraceInfo, trace_infos

TRACES_HEADER = "| name | kind | origin | licence | attribution | known flaws |\n|---|---|---|---|---|---|\n"
FILES_HEADER = "| file | from | conversion | SHA-256 known beforehand |\n|---|---|---|---|\n"

HEAD = """# Public traces

Written by `python -m pipelines.document` from `conf/trace`; do not edit.

Public job, demand, request and grid traces by name. None of their data is part of this project; `JOULEWISE_TRACES` names the folder they
lie in. Names without a folder are choices of `trace=` for `python -m pipelines.train` and `python -m pipelines.make_trace`; the others are
series or requests and no jobs. Each configuration in `conf/trace` holds what this table shows, as data.

"""

FETCH = """
## Bringing them to your machine

```
python -m pipelines.fetch_traces out=traces                           # all of them, about 50 MB to bring and 7 MB to keep
python -m pipelines.fetch_traces traces=[philly,helios,grid] out=traces
python -m pipelines.fetch_traces out=traces origin.base=file:///mnt/mirror     # or https://...: BASE/repository/commit/path
export JOULEWISE_TRACES=$PWD/traces
```

The originals come from the public code host at the commit stated above, one file after another, and become the files below. A run that is
cut or killed goes on where it stopped; a file is put in place in one step when it is whole and verified; what is there and whole is left
alone. Redirects to another scheme, names that leave the folder, files above `max_mib`, web pages and large-file pointers are refused.
Formats that run code when they are read are not fetched: the power samples of AcmeTrace are pickles, and so left out. Every line of the
closing table says what was verified; the exit code is 1 when a file could not be brought.

What is verified:

- *Bytes* of a plain copy, against the SHA-256 below.
- *Contents* of a converted table, against the SHA-256 below: column names, kinds and values (`telemetry.originals.table_digest`), whatever
  version of the file format holds them. A changed original, or a conversion that differs, is refused and replaces nothing.
- *Originals*: their SHA-256 is not known beforehand. It is recorded in `fetched.json` on first use, and the same commit must give the same
  file ever after. `checksums=accept` takes what differs and says so.

`fetched.json` also holds licence and attribution of each file: keep it with the data.

"""

WORLDS = """
## A trace as a jobs table

```
python -m pipelines.make_trace trace=openb out=outputs/openb.parquet
python -m pipelines.make_trace trace=philly out=outputs/half.parquet thin=0.5 time_scale=0.8 seed=3
```

`thin` keeps each job with that probability, so the rate falls and its shape over time stays. `time_scale` stretches submit times and leaves
durations: 0.5 doubles the load and also halves the length of a day. Jobs that state no class get one by shape (`class_tagging=shape`): no
GPU is `batch_inference`, a share of one GPU `interactive`, one GPU `fine_tuning`, more `training`; the true duration is never used.

## Drawn months

```
python -m pipelines.make_trace trace=philly draw.months=3 draw.seed=1 out=outputs/drawn.parquet
```

A model of how jobs arrive (`envs/worlds/arrivals.py`: users' sessions on a weekly rhythm that drifts) is fitted on the first
`draw.fit_share` of the trace, and draws months of 30 days that begin on the Monday after that part. Sessions are copies of sessions that
were there, whole, at new times and in new company: durations and sizes of single jobs can therefore not differ from the fitted part but by
chance; rhythm, burstiness and load can. `users` in `conf/trace` says which columns stand for a user.

The command prints, and writes beside the table as JSON and as a picture, how fitted part, drawn months and held-out rest compare: gaps,
day and week rhythm, burstiness by bin width, sessions, durations, sizes, and Kolmogorov-Smirnov or total-variation distances of each pair.
The distance of the fitted part to the rest says how far the trace itself moves: no model of the first part comes nearer to the rest than
about that. Both `philly` (in its last third four times as many jobs a day, an eighth as long) and `openb` (a rush on its last day) move
a lot.

## Under stress

```
python -m pipelines.evaluate jobs=jobs.parquet grid=grid.parquet stress=[price_spike,heat_wave] stress.price_spike.factor=20
python -m pipelines.make_trace trace=philly stress=flash_crowd out=outputs/crowded.parquet
```

| stress | what it changes | what `evaluate` does |
|---|---|---|
| `flash_crowd` | adds copies of jobs, `factor` times the mean load, most at once | windows are cut from the longer table |
| `price_spike` | prices times `factor`, at least `floor_usd_per_kwh`, at `sites` | seen and billed |
| `heat_wave` | temperatures, half a sine up to `add_c` | PUE and with it energy follow |
| `telemetry_loss` | price, carbon, renewable share and temperature stand still | seen, not billed (below) |
| `site_loss` | all nodes of a site are out | its nodes are down; their jobs fall back to their last checkpoint |

Each comes once in every stretch of about `every_hours` of the time that jobs and grid cover, at a whole hour that the evaluation seed
draws, or once at `at`. Jobs and grid are changed before windows are cut, so that window starts stay those of the world without stress
(unless a crowd outlasts the trace). The output states every time.

Under `telemetry_loss` policies decide on the frozen values, and on forecasts that repeat them for a day; energy, cost, carbon and objective
are then recomputed from the event log on the true values. Policies that look at no price decide as ever. What a policy knows of jobs,
queue and nodes is not lost.
"""


def traces_table(infos: list[TraceInfo]) -> str:
    """Origin, licence and flaws of every trace."""
    rows = []
    for info in infos:
        origin = info.origin
        source = f"{origin['repository']} @ {origin['commit']}: `{origin['path']}`"
        rows.append(f"| {info.name} | {info.kind} | {source} | {origin['licence']} | {origin['attribution']} | {'; '.join(info.flaws)} |\n")
    return TRACES_HEADER + "".join(rows)


def files_table(infos: list[TraceInfo]) -> str:
    """What is fetched, and what it becomes."""
    rows = [f"| `{file.file}` | {_source(file)} | {file.conversion} | {_checksum(file)} |\n" for info in infos for file in info.fetch]
    return FILES_HEADER + "".join(rows)


def _source(file: FetchFile) -> str:
    originals = file.originals()
    return f"`{originals[0][1]}`" + (f" and {len(originals) - 1} more" if len(originals) > 1 else "")


def _checksum(file: FetchFile) -> str:
    return f"bytes `{file.sha256[:16]}…`" if file.conversion == COPY else f"contents `{file.content_sha256[:16]}…`"


def traces_page() -> str:
    """The whole page."""
    infos = trace_infos()
    return HEAD + traces_table(infos) + FETCH + files_table(infos) + WORLDS
