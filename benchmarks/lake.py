"""``python -m benchmarks.lake``: the lake at size, against plain pandas and Prometheus' own storage.

Four parts, each in a process of its own, whose peak resident set the kernel counts:

* *ingest*: ``benchmarks/lake_data.py`` writes a fleet's samples as Parquet (not timed); then ``samples_table`` cleans and stores them;
* *pandas*: the first files of the same, read, sorted and written with ``DataFrame.to_parquet`` as they are, nothing cleaned, in memory;
* *month*: a smaller fleet for 30 days; then 30 days of ``hw.power`` of one pool, from the lake and from what pandas wrote a day;
* *prometheus*: one day of the month's cleaned samples as OpenMetrics text, ``promtool tsdb create-blocks-from openmetrics``; bytes a sample
  and the time, with the text already written. Prometheus cleans nothing; ``promtool`` is its own bulk import.

``--levels`` measures instead what encodings and levels of compression take: bytes and CPU nanoseconds a row.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from benchmarks.lake_data import Fleet, write_fleet
from pipelines.workspace import write_json
from telemetry.ingest import SourceSpec, ingest_sources, load_inventory
from telemetry.lake import Lake
from telemetry.readers import ReadContext
from telemetry.readers.samples_table import PIECE_ROWS, SamplesTableReader
from telemetry.schema import SAMPLE_TEXT

MONTH_DAYS, MONTH_STEP_S = 30, 30
PANDAS_ROWS = 12_000_000
POOL = "west-h100"


def in_child(part: str, *arguments: str) -> dict[str, Any]:
    """Run a part of this module in a process of its own; its answer, with CPU seconds and peak memory."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.lake", "--part", part, *arguments]
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{part} failed with exit code {child.returncode}")
        out.seek(0)
        answer = json.loads(out.read().splitlines()[-1])
    cpu_s = round(used.ru_utime + used.ru_stime, 1)
    return answer | {"wall_s": round(time.perf_counter() - began, 1), "cpu_s": cpu_s, "peak_gib": round(used.ru_maxrss / 1024**2, 2)}


def part_ingest(folder: Path, root: Path, inventory: Path) -> dict[str, Any]:
    """Ingest; seconds are those of ``ingest_sources``, all of it."""
    began = time.perf_counter()
    result = ingest_sources(Lake(root), [SourceSpec(folder, "samples_table", "fleet")], load_inventory(inventory))
    return {"seconds": time.perf_counter() - began, "rows": result.rows["samples"], "flaws": result.quality.total()}


def part_pandas(folder: Path, root: Path) -> dict[str, Any]:
    """Read, sort and write as many files as memory is meant for."""
    root.mkdir(parents=True)
    files, rows = [], 0
    for file in sorted(folder.glob("*.parquet")):
        if rows < PANDAS_ROWS:
            files.append(file)
            rows += pq.ParquetFile(file).metadata.num_rows
    began = time.perf_counter()
    frame = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    frame = frame.sort_values(["__name__", "Hostname", "gpu", "timestamp"])
    frame.to_parquet(root / "part.parquet", index=False)
    return {"seconds": time.perf_counter() - began, "rows": rows}


def part_month_pandas(root: Path, out: Path) -> dict[str, Any]:
    """The lake's samples as pandas writes them, a file a day (not timed)."""
    out.mkdir(parents=True)
    lake = Lake(root)
    for day in pd.date_range("2026-01-05", periods=MONTH_DAYS):
        lake.table("samples", day, day + pd.Timedelta("1D")).to_parquet(out / f"{day:%Y-%m-%d}.parquet", index=False)
    return {"bytes": size_of(out)}


def part_read(kind: str, root: Path) -> dict[str, Any]:
    """30 days of one metric of one pool: time, node, device, value. The second time of two, so that files are in memory for all."""
    columns, seconds, rows = ["time", "node", "device", "value"], [], 0
    for _ in range(2):
        began = time.perf_counter()
        if kind == "lake":
            frame = Lake(root).table("samples", columns=columns, where={"metric": "hw.power", "pool": POOL})
        elif kind == "query":
            frame = Lake(root).query(
                f"SELECT time, node, device, value FROM samples WHERE metric = 'hw.power' AND pool = '{POOL}' ORDER BY time"
            )
        else:
            filters = [("metric", "==", "hw.power"), ("pool", "==", POOL)]
            frame = pd.read_parquet(root, columns=columns, filters=filters).sort_values("time", kind="stable")
        seconds.append(time.perf_counter() - began)
        rows = len(frame)
    return {"first_s": seconds[0], "second_s": seconds[1], "rows": rows}


def part_openmetrics(root: Path, out: Path) -> dict[str, Any]:
    """A day of the lake as OpenMetrics text."""
    frame = Lake(root).table("samples", "2026-01-06", "2026-01-07")
    labels = [name for name in SAMPLE_TEXT if name not in ("metric", "unit", "source", "service")]
    with out.open("w") as file:
        for metric, own in frame.groupby("metric", observed=True):
            name = str(metric).replace(".", "_")
            file.write(f"# TYPE {name} gauge\n")
            for texts, series in own.groupby(labels, observed=True, sort=False):
                shown = ",".join(f'{key}="{value}"' for key, value in zip(labels, texts, strict=True) if value)
                seconds = series["time"].astype("int64") / 1e9
                file.writelines(
                    f"{name}{{{shown}}} {value!r} {t:.3f}\n" for value, t in zip(series["value"].tolist(), seconds, strict=True)
                )
        file.write("# EOF\n")
    return {"rows": len(frame)}


def size_of(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def made(folder: Path, fleet: Fleet, inventory: Path) -> int:
    """Write the fleet and its inventory; a note of what was made lets a second run use it."""
    note = folder / "_fleet.json"
    told = f"{fleet}"
    if not note.exists() or json.loads(note.read_text())["fleet"] != told:
        shutil.rmtree(folder, ignore_errors=True)
        rows = write_fleet(folder, fleet)
        note.write_text(json.dumps({"fleet": told, "rows": rows}))
    inventory.write_text(json.dumps({"nodes": fleet.inventory}))
    return json.loads(note.read_text())["rows"]


def measure_ingest(work: Path, fleet: Fleet) -> list[dict[str, Any]]:
    """The parts ingest and pandas."""
    rows = made(work / "in", fleet, work / "nodes.json")
    print(f"{rows:,} rows, {size_of(work / 'in') / 1e9:.2f} GB of input; load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    shutil.rmtree(work / "lake", ignore_errors=True)
    own = in_child("ingest", str(work / "in"), str(work / "lake"), str(work / "nodes.json")) | {
        "what": "lake: clean and store",
        "read": rows,
    }
    own["bytes"] = size_of(work / "lake" / "tables")
    shutil.rmtree(work / "lake")
    shutil.rmtree(work / "pandas", ignore_errors=True)
    peer = in_child("pandas", str(work / "in"), str(work / "pandas")) | {"what": "pandas: sort and to_parquet"}
    peer["bytes"], peer["read"] = size_of(work / "pandas"), peer["rows"]
    shutil.rmtree(work / "pandas")
    return [own, peer]


def measure_month(work: Path, gpus: int) -> list[dict[str, Any]]:
    """The parts month and prometheus."""
    lake, out = work / "month_lake", work / "month_pandas"
    for folder in (lake, out):
        shutil.rmtree(folder, ignore_errors=True)
    read = made(work / "month", Fleet(gpus, 24 * MONTH_DAYS, MONTH_STEP_S, seed=1, file_s=86_400), work / "month_nodes.json")
    found = [
        in_child("ingest", str(work / "month"), str(lake), str(work / "month_nodes.json"))
        | {"what": "lake: 30 days, clean and store", "read": read}
    ]
    found[0]["bytes"] = size_of(lake / "tables")
    written = in_child("month_pandas", str(lake), str(out))
    for kind, root in (("lake", lake), ("query", lake), ("pandas", out)):
        answer = in_child("read", kind, str(root))
        found.append(answer | {"what": f"read a month of one metric and pool: {kind}"})
    found[-1]["bytes"], found[-1]["stored"] = written["bytes"], found[0]["rows"]
    if shutil.which("promtool"):
        found.append(measure_prometheus(work, lake))
    for folder in (lake, out):
        shutil.rmtree(folder)
    return found


def measure_prometheus(work: Path, lake: Path) -> dict[str, Any]:
    """A day of the month into blocks."""
    text, blocks = work / "day.om", work / "blocks"
    shutil.rmtree(blocks, ignore_errors=True)
    rows = in_child("openmetrics", str(lake), str(text))["rows"]
    began = time.perf_counter()
    child = subprocess.Popen(["promtool", "tsdb", "create-blocks-from", "openmetrics", str(text), str(blocks)], stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit("promtool failed")
    seconds = time.perf_counter() - began
    answer = {"what": "prometheus: a day into blocks", "seconds": seconds, "read": rows, "rows": rows, "bytes": size_of(blocks)}
    text.unlink()
    shutil.rmtree(blocks)
    return answer | {"cpu_s": round(used.ru_utime + used.ru_stime, 1), "peak_gib": round(used.ru_maxrss / 1024**2, 2)}


def measure_levels(work: Path) -> list[dict[str, Any]]:
    """Encodings of the value column and levels of zstd, over the pieces of an hour of 2,000 GPUs."""
    made(work / "levels", Fleet(2_000, 1.0, 15), work / "nodes.json")
    reader, context = SamplesTableReader(), ReadContext("fleet", scratch=work)
    pieces = [table for _, table in reader.read_pieces(work / "levels", context, PIECE_ROWS).tables]
    text = [name for name in pieces[0].column_names if name not in ("time", "value")]
    found, rows = [], sum(map(len, pieces))
    for value in ("PLAIN", "BYTE_STREAM_SPLIT", "dictionary"):
        for level in (1, 3, 6, 9):
            encodings = {"time": "DELTA_BINARY_PACKED"} | ({"value": value} if value != "dictionary" else {})
            path, began = work / "level.parquet", time.process_time()
            chosen = text if value != "dictionary" else [*text, "value"]
            with pq.ParquetWriter(
                path, pieces[0].schema, compression="zstd", compression_level=level, use_dictionary=chosen, column_encoding=encodings
            ) as writer:
                for piece in pieces:
                    writer.write_table(piece.cast(pieces[0].schema), row_group_size=1 << 20)
            cpu_ns = (time.process_time() - began) / rows * 1e9
            found.append({"what": f"{value} zstd {level}", "bytes_per_row": path.stat().st_size / rows, "cpu_ns_per_row": cpu_ns})
            path.unlink()
    return found


def table_of(found: list[dict[str, Any]]) -> str:
    """What was measured, as text."""
    lines = [f"{'':<46}{'rows':>13}{'seconds':>9}{'M rows/s':>10}{'B/row':>7}{'peak GiB':>10}{'CPU s':>8}"]
    for row in found:
        seconds = row.get("seconds", row.get("second_s", 0.0))
        rate = row.get("read", row["rows"]) / seconds / 1e6
        per_row = f"{row['bytes'] / row.get('stored', row['rows']):.2f}" if "bytes" in row else "-"
        lines.append(
            f"{row['what']:<46}{row['rows']:>13,}{seconds:>9.2f}{rate:>10.2f}{per_row:>7}{row['peak_gib']:>10.2f}{row['cpu_s']:>8.1f}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpus", type=int, default=1_000, help="of the ingest; 10,000 for 24 hours are 288 million rows")
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--step-s", type=int, default=15)
    parser.add_argument("--month-gpus", type=int, default=64, help="of the month; 0 leaves it out")
    parser.add_argument("--work", type=Path, help="folder for the data; default: one that is removed")
    parser.add_argument("--levels", action="store_true")
    parser.add_argument("--json", type=Path, default=Path("outputs/benchmarks/lake.json"))
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.part:
        first = [options.rest[0]] if options.part == "read" else []
        part = globals()[f"part_{options.part}"]
        print(json.dumps(part(*first, *map(Path, options.rest[len(first) :]))))
        return
    with tempfile.TemporaryDirectory() as own:
        work = options.work or Path(own)
        work.mkdir(parents=True, exist_ok=True)
        if options.levels:
            found = measure_levels(work)
            print(
                "\n".join(f"{row['what']:<28}{row['bytes_per_row']:>8.3f} B/row{row['cpu_ns_per_row']:>8.0f} CPU ns/row" for row in found)
            )
        else:
            found = measure_ingest(work, Fleet(options.gpus, options.hours, options.step_s))
            if options.month_gpus:
                found += measure_month(work, options.month_gpus)
            print(table_of(found))
    write_json(
        options.json,
        {"arguments": vars(options) | {"json": str(options.json), "work": str(options.work)}, "load": os.getloadavg(), "found": found},
    )
    print(f"written to {options.json}")


if __name__ == "__main__":
    main()
