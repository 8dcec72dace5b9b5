"""``python -m benchmarks.racing_promotions``: processes that race to promote, and promotions and rollbacks that are killed.

*Racing*: in every round some processes promote different versions at once, in turn all against the champion that all saw, and each against
the one that it reads itself. Nothing is replaced: every winner fetches and verifies a real package. After every round the aliases are what
the audit record leads to, and its promotions are exactly those that a process saw succeed, each from the champion before it.

*Kills*: a process promotes or rolls back and gets SIGKILL, after a random delay or at a random write (before or after an alias, a tag or an
audit record, or in the middle of one). The champion must verify at once; after the next command, the chain be whole, nothing be unfinished,
the aliases be as recorded, and ``previous`` be the champion before.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from benchmarks.live_registry import EVIDENCE, demand_series
from models.catalog import FORECASTERS
from pipelines.workspace import write_json
from registry.alias_moves import read_audit, replayed
from registry.audit import FileAudit
from registry.gates import Digest, NoPickle, SkillOverNaive, run_gates
from registry.manifest import Manifest
from registry.mlflow_client import open_client
from registry.packaging import draft_package, register, seal_package
from registry.promotion import (
    CHAMPION,
    PREVIOUS,
    ChampionChangedError,
    PromotionError,
    champion_version,
    current_aliases,
    promote,
    rollback,
)
from registry.tracking import open_tracking
from registry.verify import verified_manifest_sha256

NAME = "workload-forecaster"


def make_versions(uri: str, count: int, scratch: Path) -> list[str]:
    """Register ``count`` real packages."""
    tracking = open_tracking(uri, artifact_root=scratch / "artifacts")
    series = demand_series(2, 120, season=24)
    forecaster = FORECASTERS["persistence"](freq="10min", horizon=6, season_length=24).fit(series)
    versions = []
    for number in range(count):
        identity = Manifest(
            kind="forecaster",
            name="persistence",
            registered_name=NAME,
            created="2026-02-01T00:00:00+00:00",
            config={},
            layout={},
            data={},
            git={},
            environment={},
            metrics={"wql": 0.1},
        )
        draft = draft_package(scratch / str(number), identity, forecaster.save, figures={}, input_example=series.tail(2))
        seal_package(draft, run_gates([SkillOverNaive(), NoPickle(), Digest()], {"skill_over_naive": EVIDENCE, "package": draft}))
        with tracking.run("package") as run:
            versions.append(register(run, draft.folder))
    return versions


def _racer(uri: str, pipe: Any, barrier: Any) -> None:
    client = open_client(uri)
    while (order := pipe.recv()) is not None:
        version, expected, fresh = order
        barrier.wait()
        try:
            if fresh:
                expected = champion_version(client, NAME)
            promote(client, NAME, version, expected_champion=expected)
            pipe.send((version, "won"))
        except ChampionChangedError:
            pipe.send((version, "changed"))
        except PromotionError as error:
            pipe.send((version, "champion already" if "champion already" in str(error) else repr(error)))


def race(uri: str, versions: list[str], tries: int, racers: int, seed: int, limit_s: float = float("inf")) -> dict[str, Any]:
    """``tries`` promotions in rounds of ``racers``; counts, and what was wrong (none, it is hoped)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.racing_promotions"])
    barrier = context.Barrier(racers)
    rng, client = random.Random(seed), open_client(uri)
    promote(client, NAME, versions[0], expected_champion=None)
    pipes, processes = [], []
    for _ in range(racers):
        ours, theirs = context.Pipe()
        process = context.Process(target=_racer, args=(uri, theirs, barrier), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    counts: dict[str, int] = {}
    lost = double = inconsistent = 0
    began, n_done = time.perf_counter(), 1
    for number in range(tries // racers):
        if time.perf_counter() - began > limit_s:
            break
        champion = champion_version(client, NAME)
        chosen = rng.sample([version for version in versions if version != champion], racers)
        for pipe, version in zip(pipes, chosen, strict=True):
            pipe.send((version, champion, number % 2 == 1))
        answers = [pipe.recv() for pipe in pipes]
        for _, answer in answers:
            counts[answer] = counts.get(answer, 0) + 1
        winners = [version for version, answer in answers if answer == "won"]
        records = read_audit(client)
        done = [entry for entry in records if entry["phase"] == "done"]
        recorded = [entry["after"][CHAMPION] for entry in done[n_done:]]
        lost += len(set(winners) - set(recorded)) + (not winners)
        double += len(recorded) - len(set(recorded)) + (number % 2 == 0 and len(winners) > 1) + len(set(recorded) - set(winners))
        chain = [champion, *recorded]
        follows = all(entry["before"][CHAMPION] == before for entry, before in zip(done[n_done:], chain, strict=False))
        inconsistent += not follows or replayed(records, NAME) != current_aliases(client, NAME)
        n_done = len(done)
    wall_s = time.perf_counter() - began
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join(10)
    problems = {"lost": lost, "double": double, "inconsistent": inconsistent}
    return {"tries": sum(counts.values()), "racers": racers, "answers": counts, **problems, "wall_s": round(wall_s, 1)}


class _Dying:
    """SIGKILL to this process at its n-th write."""

    def __init__(self, at: int) -> None:
        self.left = at

    def count(self) -> None:
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, call: Any) -> Any:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.count()
            answer = call(*arguments, **options)
            self.count()
            return answer

        return counted

    def append(self, call: Any) -> Any:
        def torn(audit: FileAudit, record: dict[str, Any]) -> dict[str, Any]:
            self.count()
            if self.left == 0:
                with audit.path.open("a") as handle:
                    handle.write('{"action": "torn')
                self.count()
            self.count()
            answer = call(audit, record)
            self.count()
            return answer

        return torn


def _victim(uri: str, action: str, version: str, expected: str, at: int | None, started: Any) -> None:
    client = open_client(uri)
    champion_version(client, NAME)
    if at is not None:
        dying = _Dying(at)
        FileAudit.append = dying.append(FileAudit.append)  # type: ignore[method-assign]
        for method in ("set_registered_model_alias", "delete_registered_model_alias", "set_model_version_tag"):
            setattr(client, method, dying.around(getattr(client, method)))
    started.send(None)
    if action == "rollback":
        rollback(client, NAME, reason="killed")
    else:
        promote(client, NAME, version, expected_champion=expected)


def _wrong_after_kill(uri: str, before: dict[str, str], target: str, made: dict[str, str | None]) -> list[str]:
    client = open_client(uri)
    wrong = []
    verified_manifest_sha256(client, NAME, champion_version(client, NAME) or "0")
    with contextlib.suppress(PromotionError, MlflowException):
        promote(client, NAME, "0", expected_champion=champion_version(client, NAME))
    records, aliases = read_audit(client), current_aliases(client, NAME)
    if records[-1]["phase"] == "intent":
        wrong.append("unfinished")
    if replayed(records, NAME) != aliases:
        wrong.append(f"aliases {aliases} are not as recorded")
    moved = aliases[CHAMPION] == target
    if not moved and aliases != before:
        wrong.append(f"half moved: {aliases}, before {before}")
    if moved and aliases.get(PREVIOUS) != made[target]:
        wrong.append(f"previous is {aliases.get(PREVIOUS)}, was to be {made[target]}")
    return wrong


def kills(uri: str, versions: list[str], count: int, seed: int, limit_s: float = float("inf")) -> dict[str, Any]:
    """``count`` promotions and rollbacks that get SIGKILL; how many died, moved or did not, and what was wrong."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.racing_promotions"])
    rng, client = random.Random(seed), open_client(uri)
    died = moved = survived = 0
    wrong: list[str] = []
    spans: list[float] = [0.3]
    began = time.perf_counter()
    for number in range(count):
        if time.perf_counter() - began > limit_s:
            break
        before = current_aliases(client, NAME)
        champion, previous = before.get(CHAMPION), before.get(PREVIOUS)
        if champion is None or previous is None:  # both are needed for what follows
            fresh = next(version for version in versions if version not in (champion, previous))
            promote(client, NAME, fresh, expected_champion=champion)
            if champion is None:
                promote(client, NAME, versions[1] if fresh == versions[0] else versions[0], expected_champion=fresh)
            before = current_aliases(client, NAME)
            champion, previous = before[CHAMPION], before[PREVIOUS]
        action = rng.choice(["promote", "promote", "rollback"])
        target = previous if action == "rollback" else rng.choice([v for v in versions if v not in (champion, previous)])
        made = {target: champion}
        if action == "rollback":
            done = [e for e in read_audit(client) if e["phase"] == "done" and e["action"] == "promote" and e["after"][CHAMPION] == target]
            made = {target: done[-1]["before"].get(CHAMPION)}
        at = rng.randrange(12) if number % 2 else None
        ours, theirs = context.Pipe()
        victim = context.Process(target=_victim, args=(uri, action, target, champion, at, theirs))
        victim.start()
        ours.recv()
        start = time.perf_counter()
        if at is None:
            victim.join(rng.uniform(0, 1.2 * max(spans[-10:])))
            victim.kill()
        victim.join()
        killed = victim.exitcode == -signal.SIGKILL
        died += killed
        survived += not killed
        if not killed:
            spans.append(time.perf_counter() - start)
        wrong += [f"{number} {action}: {word}" for word in _wrong_after_kill(uri, before, target, made)]
        moved += current_aliases(client, NAME)[CHAMPION] == target
    answer = {"tries": died + survived, "killed": died, "ended_first": survived, "moved": moved, "corrupted": len(wrong)}
    return answer | {"wrong": wrong[:10], "wall_s": round(time.perf_counter() - began, 1)}


def main() -> None:
    """Both, and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--racers", type=int, default=4)
    parser.add_argument("--uri", default=None, help="a Postgres registry for the racing; default: sqlite in a temporary folder")
    parser.add_argument("--limit-s", type=float, default=float("inf"), help="each of the two stops after this; it tells how many it did")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/racing_promotions.json"))
    options = parser.parse_args()
    answer: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="joulewise-racing-") as folder:
        uri = options.uri or f"sqlite:///{folder}/mlflow.db"
        versions = make_versions(uri, 8, Path(folder))
        if options.tries:
            answer["racing"] = race(uri, versions, options.tries, options.racers, options.seed, options.limit_s)
            print(answer["racing"], flush=True)
        if options.kills:
            answer["kills"] = kills(uri, versions, options.kills, options.seed, options.limit_s)
            print(answer["kills"], flush=True)
    write_json(options.out, answer)


if __name__ == "__main__":
    main()
