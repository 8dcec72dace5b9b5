"""Byte-level fuzzing of a telemetry reader: executions, refusals, and every crash that is no clear refusal.

    python -m benchmarks.fuzz_readers --reader prometheus --seconds 60 [--engine atheris|random] [--out outputs/fuzz]

Seeds are the clean exports of the test kit (``tests/telemetry/conftest.py``, or a file by ``--seed-file``) and their gzip. With atheris
(coverage-guided, ``pip install atheris``) its mutations are driven by the branches of the readers; without, bytes are changed at random. An
input is a crash if the reader raises anything but an InputError that names the file, or gives tables that do not fit the schema. Distinct
crashes, by exception and innermost line of ours, are counted, and the first input of each is kept. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
TOKENS = (b"-", b"9", b",", b"|", b"\n", b"NaN", b"e9", b'"', b".", b"{", b"}", b"[", b"]", b":", b"null", b"\x00", b"\xff", b" ", b"1e400")
MODULES = ["telemetry.readers", "telemetry.raw", "telemetry.cleaning", "telemetry.cleaner", "telemetry.times"]


@functools.cache
def seed_kit() -> Any:
    """The clean exports and what their readers are told besides."""
    place = REPOSITORY / "tests" / "telemetry" / "conftest.py"
    spec = importlib.util.spec_from_file_location("fuzz_seeds", place)
    assert spec is not None and spec.loader is not None  # noqa: PT018
    kit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kit)
    return kit


def seeds(reader: str, seed_file: Path | None) -> tuple[str, list[bytes]]:
    """File name and contents to begin with."""
    if seed_file is not None:
        name, data = seed_file.name, seed_file.read_bytes()
    else:
        kit = seed_kit()
        if reader not in kit.CLEAN:
            raise SystemExit(f"no reader '{reader}'; allowed: {', '.join(kit.CLEAN)}")
        name, data = kit.CLEAN[reader]
    # A seed of a few KiB is mutated and read quickly; most exports repeat themselves after that.
    return name, [data, data[: len(data) // 8], gzip.compress(data, mtime=0)]


class Target:
    """Reads inputs and counts what comes of them."""

    def __init__(self, reader: str, name: str, folder: Path, keep: Path) -> None:
        from telemetry.errors import InputError
        from telemetry.readers import ReadContext, reader_named
        from telemetry.schema import validate

        kit = seed_kit()
        self.context = ReadContext("fuzz", options=kit.CLEAN_OPTIONS.get(reader, {}))
        self.reader, self.refusal, self.validate = reader_named(reader), InputError, validate
        self.path, self.keep = folder / name, keep
        self.executions = self.read = self.refused = 0
        self.crashes: dict[str, dict[str, Any]] = {}

    def __call__(self, data: bytes) -> None:
        self.executions += 1
        self.path.write_bytes(data)
        try:
            result = self.reader.read(self.path, self.context)
            for table, frame in result.tables.items():
                self.validate(table, frame, where="fuzz")
            self.read += 1
        except self.refusal as error:
            self.refused += 1
            if self.path.name not in str(error):
                self._crash(data, error, "refused without the file's name")
        except Exception as error:
            self._crash(data, error, type(error).__name__)

    def _crash(self, data: bytes, error: Exception, kind: str) -> None:
        own = [frame for frame in traceback.extract_tb(error.__traceback__) if "telemetry" in Path(frame.filename).parts]
        at = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
        found = self.crashes.setdefault(f"{kind} at {at}", {"count": 0, "message": str(error)[:200], "input": ""})
        found["count"] += 1
        if not found["input"]:
            self.keep.mkdir(parents=True, exist_ok=True)
            path = self.keep / f"crash-{hashlib.sha256(data).hexdigest()[:12]}"
            path.write_bytes(data)
            found["input"] = str(path)

    def report(self, engine: str, seconds: float) -> dict[str, Any]:
        """Counts as plain types."""
        counts = {"executions": self.executions, "read": self.read, "refused": self.refused}
        return {"reader": self.reader.name, "engine": engine, "seconds": round(seconds, 1), **counts, "crashes": self.crashes}


def mutations(first: list[bytes], rng: random.Random) -> Iterator[bytes]:
    """Seeds with a few bytes changed, cut out, doubled or put in, for ever."""
    yield from first
    while True:
        out = bytearray(rng.choice(first))
        for _ in range(rng.randint(1, 6)):
            at, kind = rng.randrange(len(out) + 1), rng.random()
            if kind < 0.3:
                out[at : at + 1] = bytes([rng.randrange(256)])
            elif kind < 0.5:
                del out[at : at + rng.randint(1, 60)]
            elif kind < 0.65:
                out[at:at] = out[at : at + rng.randint(1, 200)]
            elif kind < 0.7:
                del out[at:]
            else:
                out[at:at] = rng.choice(TOKENS)
        yield bytes(out)


def run_random(target: Target, first: list[bytes], seconds: float, seed: int) -> float:
    """Random mutations until the time is over; seconds taken."""
    start = time.monotonic()
    for data in mutations(first, random.Random(seed)):
        target(data)
        if time.monotonic() - start >= seconds:
            break
    return time.monotonic() - start


def run_atheris(arguments: argparse.Namespace) -> None:
    """In a process of its own, since libFuzzer does not return: writes the report and ends."""
    import atheris

    import telemetry.sorting
    import telemetry.spill

    with atheris.instrument_imports(include=MODULES):
        import telemetry.readers  # noqa: F401
    name, first = seeds(arguments.reader, arguments.seed_file)
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(first):
            (corpus / str(number)).write_bytes(data)
        target = Target(arguments.reader, name, Path(folder), arguments.out / arguments.reader)
        start = time.monotonic()

        def one(data: bytes) -> None:
            target(data)
            if time.monotonic() - start >= arguments.seconds:
                arguments.worker.write_text(json.dumps(target.report("atheris", time.monotonic() - start)))
                # Past libFuzzer's own end, which would not come back here.
                os._exit(0)

        atheris.Setup([sys.argv[0], str(corpus), "-max_len=65536", f"-seed={arguments.seed}", "-verbosity=0"], one)
        atheris.Fuzz()


def fuzz(arguments: argparse.Namespace) -> dict[str, Any]:
    """The report of a run with the engine that is asked for, or there."""
    engine = arguments.engine or ("atheris" if importlib.util.find_spec("atheris") else "random")
    if engine == "random":
        name, first = seeds(arguments.reader, arguments.seed_file)
        with tempfile.TemporaryDirectory() as folder:
            target = Target(arguments.reader, name, Path(folder), arguments.out / arguments.reader)
            return target.report(engine, run_random(target, first, arguments.seconds, arguments.seed))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "benchmarks.fuzz_readers", *sys.argv[1:], "--worker", str(report)]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if not report.is_file():
            raise SystemExit(f"atheris ended without a report (status {ended.returncode}):\n{ended.stderr[-2000:]}")
        return json.loads(report.read_text())


def main() -> int:
    """Fuzz, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reader", required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--engine", choices=("atheris", "random"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seed-file", type=Path)
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz"))
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("error")
    with contextlib.suppress(ImportError):
        import pandera.pandas  # noqa: F401 - its import warns
    if arguments.worker is not None:
        run_atheris(arguments)
    found = fuzz(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / f"{arguments.reader}.json").write_text(json.dumps(found, indent=1))
    print(f"{found['reader']}: {found['executions']:,} executions in {found['seconds']} s ({found['engine']}), {found['read']:,} read, "
          f"{found['refused']:,} refused, {len(found['crashes'])} distinct crash(es)")  # fmt: skip
    for place, crash in found["crashes"].items():
        print(f"  {place}: {crash['count']:,} times; {crash['message']}; {crash['input']}")
    return 1 if found["crashes"] else 0


if __name__ == "__main__":
    sys.exit(main())
