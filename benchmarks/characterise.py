"""A workload classifier where it was not trained: ``python -m benchmarks.characterise [--lake DIR] [--out FILE]``.

Everything here is synthetic. Two generators that share no code stand for each other's unknown site: the profiles of
`models.characterise.generator` (*drawn*: random sites, for training; *base*, *coarse*, *shifted*: settings that training did not see), and
the embedded sample (`envs.sample`; ``--lake``: a lake it was ingested into, else it is ingested first), of which jobs with readings count.
*Left out* means whole groups: sites, or nodes of the sample. *Early* is a job as it was seen after so much of its time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.characterise.classifier import UNKNOWN, ClassifierOptions, Validation, WorkloadClassifier
from models.characterise.generator import SETTINGS, drawn_profiles, generate_profiles
from models.characterise.scores import scores
from pipelines.characterise import CharacteriseConfig, profiles_of
from pipelines.cli import compose_config
from pipelines.ingest import LakeConfig, ingest
from telemetry.classes import CLASS_INDEX
from telemetry.job_profiles import JobProfile

JOBS, TEST_JOBS = 3000, 1000
EARLY = (0.25, 0.5)


def of_left_out(name: str, model: WorkloadClassifier, validation: Validation) -> dict[str, Any]:
    """Row of out-of-fold answers."""
    answered = (validation.probabilities.max(axis=1) >= model.threshold) & (validation.distance <= model.far)
    row = scores(validation.probabilities, validation.truth, answered)
    return {"trained": name, "tested": f"{name}, left out", **row, "far": float(np.mean(validation.distance > model.far))}


def of_others(trained: str, tested: str, model: WorkloadClassifier, profiles: Sequence[JobProfile]) -> dict[str, Any]:
    """Row of a model's answers for jobs that it has not seen."""
    answer = model.answer(profiles)
    truth = np.array([CLASS_INDEX[p.workload_class] for p in profiles])
    row = scores(answer.probabilities, truth, answer.label != UNKNOWN)
    return {"trained": trained, "tested": tested, **row, "far": float(answer.far.mean())}


def evaluate(lake: str, jobs: int = JOBS, test_jobs: int = TEST_JOBS) -> list[dict[str, Any]]:
    """All rows."""
    sample = profiles_of(CharacteriseConfig(LakeConfig(lake), "unused", inventory="data/sample/manifest.json"))
    read = [p for p in sample if p.workload_class and len(p.seconds)]
    tests = {name: generate_profiles(test_jobs, setting, seed=100 + i) for i, (name, setting) in enumerate(SETTINGS.items())}
    rows: list[dict[str, Any]] = []
    for name, profiles in (("drawn", drawn_profiles(jobs)), ("sample", read)):
        model, validation = WorkloadClassifier.train(profiles, ClassifierOptions())
        rows.append(of_left_out(name, model, validation))
        rows += [of_others(name, other, model, test) for other, test in tests.items()]
        if name == "drawn":
            rows.append(of_others(name, "sample", model, read))
            rows += [
                of_others(name, f"base, early {share:.0%}", model, [p.until(share * p.elapsed_s) for p in tests["base"]]) for share in EARLY
            ]
    return rows


def printed(rows: Sequence[dict[str, Any]]) -> str:
    """The table as text."""
    head = f"{'trained':<9}{'tested':<18}{'jobs':>6}{'accuracy':>10}{'answered':>10}{'wrong':>8}{'ECE':>8}{'unlike':>8}"
    lines = [head]
    for row in rows:
        wrong = "-" if row["error_of_answers"] is None else f"{100 * row['error_of_answers']:.1f}%"
        lines.append(
            f"{row['trained']:<9}{row['tested']:<18}{row['jobs']:>6,}{100 * row['accuracy']:>9.1f}%{100 * row['coverage']:>9.1f}%{wrong:>8}"
            f"{row['calibration_error']:>8.3f}{100 * row['far']:>7.1f}%"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lake", type=str, default=None)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks/characterise.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.lake is None:
            config = compose_config("ingest", [f"lake.root={folder}/lake"])
            ingest(config.source, config.lake)
        rows = evaluate(arguments.lake or f"{folder}/lake")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    fresh = arguments.out.with_name(arguments.out.name + ".new")
    fresh.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(fresh, arguments.out)
    print(printed(rows))


if __name__ == "__main__":
    main()
