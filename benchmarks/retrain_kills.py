"""Retraining killed at random points: is the champion whole after each kill, and does the next start finish?

Each cycle retrains the small world of ``retrain_world`` up to a later day. Its process is killed (SIGKILL, the process alone, as the
kernel's out-of-memory killer does) at a random time of its life (early ones more often, since what was done is not done again) and started
again, a few times, and then left to finish. After every kill: champion and previous load verified, every alias points to a version with all
its tags and files, the audit chain holds, history and triggers can be read, and the champion is the one of before unless the audit record
says that it was promoted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from benchmarks.retrain_world import DAYS, MODEL, START, overrides, until, write_world
from pipelines.cli import compose_config, quiet_libraries
from pipelines.retrain import RetrainConfig, retrain_config, retrain_model
from pipelines.retraining.attempts import ATTEMPT, read_history
from pipelines.triggers import Trigger
from pipelines.workspace import write_json
from registry import audit
from registry.loading import VerificationError, fetch, load_version, package_of, verify_package
from registry.manifest import GATES_TAG, PACKAGE_TAG, TREE_TAG
from registry.mlflow_client import open_client
from registry.promotion import CHAMPION, PREVIOUS, audit_path, current_aliases

FIRST_DAY, SECOND_DAY, LIMIT_S = 25.0, 40.0, 600


def config_at(folder: Path, day: float, *, force: bool = False) -> RetrainConfig:
    """The command's configuration with the cheapest forecaster that learns."""
    given = [one for one in overrides(folder) if not one.startswith(("forecaster", "backtest.origins"))]
    return retrain_config(
        compose_config(
            "retrain", [*given, "forecaster=empirical_persistence", "backtest.origins=10", f"force={str(force).lower()}", until(day)]
        )
    )


def start(config: RetrainConfig, log: Path) -> int:
    """Retrain in a process of its own; its id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        quiet_libraries()
        code = max((1 for _, outcome, _ in retrain_model(config, MODEL) if outcome.action == "failed"), default=0)
    finally:
        os._exit(code)


def wait(child: int, seconds: float) -> int | None:
    """Exit status of the process, or None when it still runs after ``seconds``."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if time.monotonic() >= end:
            return None
        time.sleep(0.01)


def problems(folder: Path, config: RetrainConfig, before: str | None) -> list[str]:
    """What is wrong with the state; ``before`` is the champion at the start of the cycle."""
    uri = config.train.registry.tracking_uri
    client = open_client(uri)
    aliases, found = current_aliases(client, MODEL), []
    for alias in {CHAMPION, PREVIOUS} & set(aliases):
        try:
            load_version(MODEL, "forecaster", alias, tracking_uri=uri)
        except VerificationError as error:
            found.append(f"{alias}: {error}")
    for alias, number in aliases.items():
        version = client.get_model_version(MODEL, number)
        if missing := [tag for tag in (PACKAGE_TAG, TREE_TAG, GATES_TAG) if not version.tags.get(tag)]:
            found.append(f"{alias} points to version {number} without {', '.join(missing)}")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                verify_package(package_of(fetch(client, version, Path(scratch), uri)), alias, version.tags[PACKAGE_TAG])
            except VerificationError as error:
                found.append(f"{alias}: {error}")
    try:
        records = audit.read(audit_path(client))
        read_history(config.state)
        config.triggers.open()
        if (attempt := config.state / MODEL / ATTEMPT).exists():
            json.loads(attempt.read_text())
    except Exception as error:  # whatever cannot be read is the finding
        return [*found, f"{type(error).__name__}: {error}"]
    moved = {entry["after"].get(CHAMPION) for entry in records if entry["name"] == MODEL and entry["action"] == "promote"}
    if aliases.get(CHAMPION) not in {before, *moved}:
        found.append(f"champion is version {aliases.get(CHAMPION)}, which nothing promoted")
    if before is not None and CHAMPION not in aliases:
        found.append("there is no champion any more")
    return found


def run(kills: int, folder: Path, seed: int, most_a_cycle: int) -> dict[str, object]:
    """Kill ``kills`` times; counts of what was found."""
    rng = random.Random(seed)
    write_world(folder)
    log = folder / "log.txt"
    first = config_at(folder, FIRST_DAY, force=True)
    begun = time.monotonic()
    if wait(start(first, log), LIMIT_S) != 0:
        raise RuntimeError(log.read_text()[-3000:])
    life_s, done, broken, unfinished, day = time.monotonic() - begun, 0, [], 0, SECOND_DAY
    while done < kills:
        day = day + 0.25 if day + 0.25 < DAYS else SECOND_DAY + rng.random() / 4
        config = config_at(folder, day)
        before = current_aliases(open_client(config.train.registry.tracking_uri), MODEL).get(CHAMPION)
        config.triggers.offer(Trigger(MODEL, "planned", f"day {day:.2f}", {}, f"{day:.4f}", (START + pd.Timedelta(days=day)).isoformat()))
        for _ in range(most_a_cycle):
            child, begun = start(config, log), time.monotonic()
            if wait(child, rng.random() ** 2 * life_s) is not None:
                life_s = time.monotonic() - begun
                break
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            done += 1
            if found := problems(folder, config, before):
                broken.append({"kill": done, "found": found})
            print(f"kill {done}: {found or 'whole'}", flush=True)
            if done == kills:
                break
        begun = time.monotonic()
        status = wait(child := start(config, log), LIMIT_S)
        if status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        attempt_left = (config.state / MODEL / ATTEMPT).exists()
        if status != 0 or attempt_left or problems(folder, config, before):
            unfinished += 1
            print(f"not finished: status {status}, {log.read_text()[-1500:]}", flush=True)
    history = read_history(config_at(folder, day).state)
    return {
        "kills": done,
        "states_broken": len(broken),
        "reruns_not_finished": unfinished,
        "last_uninterrupted_s": round(life_s, 1),
        "attempts": dict(Counter(entry["action"] for entry in history)),
        "attempts_twice_in_history": sum(count > 1 for count in Counter(entry["id"] for entry in history).values()),
        "triggers_left_open": len(first.triggers.open()),
        "broken": broken,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-a-cycle", type=int, default=4, help="kills before a cycle is left to finish")
    parser.add_argument("--folder", type=Path, help="empty folder to work in; by default a temporary one")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/retrain_kills.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="joulewise-kills-") as scratch:
        folder = arguments.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        result = run(arguments.kills, folder, arguments.seed, arguments.most_a_cycle)
    print(json.dumps(result, indent=2))
    write_json(arguments.out, result)


if __name__ == "__main__":
    main()
