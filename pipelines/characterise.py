"""``python -m pipelines.characterise``: the workload class of each job in the lake, by what it did."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from envs.power.boards import load_boards
from models.characterise.classifier import LEAST_JOBS_PER_CLASS, UNKNOWN, ClassifierOptions, Validation, WorkloadClassifier
from models.characterise.generator import drawn_profiles
from models.characterise.power_profiles import power_profiles
from models.characterise.scores import scores
from pipelines.characterise_plot import quality_figure, watts_figure
from pipelines.cli import hydra_command
from pipelines.ingest import LakeConfig
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.ingest import load_inventory
from telemetry.job_profiles import METRICS, JobProfile, job_profiles
from telemetry.lake import Lake
from telemetry.times import utc_times

TRAIN = ("auto", "lake", "generated")
SAMPLE_COLUMNS = ["time", "metric", "value", "site", "node", "device", "pod_uid"]
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class CharacteriseConfig:
    """The command's keys; see ``--help``."""

    lake: LakeConfig
    out: str
    inventory: str | None = None
    boards: str | None = None
    train: str = "auto"
    model: str | None = None
    generated_jobs: int = 3000
    options: ClassifierOptions = ClassifierOptions()  # noqa: RUF009 - frozen
    as_of: pd.Timestamp | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        if self.train not in TRAIN:
            raise InputError(f"{self.train!r}", where="train", allowed=", ".join(TRAIN))
        if self.generated_jobs < 5 * LEAST_JOBS_PER_CLASS:
            raise InputError(f"{self.generated_jobs}", where="generated_jobs", allowed=f"{5 * LEAST_JOBS_PER_CLASS} or more")


@dataclass(frozen=True)
class Characterised:
    """What was found: a row for each job (``job_id, stated, label, probability, p_CLASS ..., far, readings, elapsed_s, group``)."""

    table: pd.DataFrame
    profiles: list[JobProfile]
    model: WorkloadClassifier
    validation: Validation | None
    trained_on: str


def characterise(config: CharacteriseConfig) -> Characterised:
    """Answer for all jobs of the lake that have started.

    Raises:
        InputError: no jobs, too few stated classes for ``train=lake``, or a bad file.
    """
    profiles = profiles_of(config)
    counts = np.bincount([CLASS_INDEX[p.workload_class] for p in profiles if p.workload_class], minlength=len(WORKLOAD_CLASSES))
    from_lake = config.train == "lake" or (config.train == "auto" and counts.min() >= LEAST_JOBS_PER_CLASS)
    validation = None
    if config.model is not None:
        model, told, from_lake = WorkloadClassifier.load(Path(config.model)), f"the model in {config.model}", False
    elif from_lake:
        model, validation = WorkloadClassifier.train(profiles, config.options)
        told = f"{int(counts.sum()):,} jobs of the lake with a stated class, {validation.groups} groups"
    else:
        drawn = drawn_profiles(config.generated_jobs, seed=config.options.seed)
        model, validation = WorkloadClassifier.train(drawn, config.options)
        told = f"{len(drawn):,} generated profiles"
    table = _table(profiles, model)
    if from_lake and validation is not None:
        table = _left_out(table, validation, model)
    return Characterised(table, profiles, model, validation, told)


def profiles_of(config: CharacteriseConfig) -> list[JobProfile]:
    """The jobs' profiles as the configuration asks for them."""
    lake = Lake(config.lake.root)
    jobs = lake.table("jobs", config.start)
    if jobs["start_time"].notna().sum() == 0:
        raise InputError("no job that has started", where=config.lake.root, remedy="python -m pipelines.ingest stores jobs")
    samples = lake.table("samples", columns=SAMPLE_COLUMNS)
    samples = samples[samples["metric"].astype(str).isin(list(METRICS))]
    limits: dict[str, tuple[float, float]] = {}
    if config.inventory is not None:
        boards = load_boards(config.boards)
        nodes = load_inventory(Path(config.inventory)).nodes
        limits = {
            name: (boards[node.gpu_model].idle_w, boards[node.gpu_model].limit_w)
            for name, node in nodes.items()
            if node.gpu_model in boards
        }
    profiles = job_profiles(samples, jobs, limits, config.as_of)
    if not profiles:
        raise InputError(f"no job has started by {config.as_of}", where="as_of", allowed="a time after the first start")
    return profiles


def _table(profiles: Sequence[JobProfile], model: WorkloadClassifier) -> pd.DataFrame:
    answer = model.answer(profiles)
    table = pd.DataFrame(
        {
            "job_id": [p.job_id for p in profiles],
            "stated": [p.workload_class for p in profiles],
            "label": answer.label,
            "probability": answer.probabilities.max(axis=1),
            **{f"p_{name}": answer.probabilities[:, k] for k, name in enumerate(WORKLOAD_CLASSES)},
            "far": answer.far,
            "readings": [len(p.seconds) for p in profiles],
            "elapsed_s": [p.elapsed_s for p in profiles],
            "group": [p.group for p in profiles],
        }
    )
    return table


def _left_out(table: pd.DataFrame, validation: Validation, model: WorkloadClassifier) -> pd.DataFrame:
    """The table with out-of-fold answers for the jobs that were learned from."""
    table = table.copy()
    at = np.flatnonzero(table["stated"] != "")
    best = validation.probabilities.max(axis=1)
    far = validation.distance > model.far
    names = np.array(WORKLOAD_CLASSES, dtype=object)[validation.probabilities.argmax(axis=1)]
    columns = {f"p_{name}": validation.probabilities[:, k] for k, name in enumerate(WORKLOAD_CLASSES)}
    columns |= {"probability": best, "far": far, "label": np.where((best >= model.threshold) & ~far, names, UNKNOWN)}
    for name, values in columns.items():
        table.iloc[at, table.columns.get_loc(name)] = values
    return table


def disagreements(table: pd.DataFrame) -> pd.DataFrame:
    """Jobs whose answer is another class than the stated one, the surest first."""
    rows = table[(table["stated"] != "") & (table["label"] != UNKNOWN) & (table["label"] != table["stated"])]
    return rows.sort_values(["probability", "job_id"], ascending=[False, True])


def suggestions(table: pd.DataFrame) -> pd.DataFrame:
    """``job_id, workload_class, probability`` of jobs without a stated class that got an answer."""
    rows = table[(table["stated"] == "") & (table["label"] != UNKNOWN)]
    return rows[["job_id", "label", "probability"]].rename(columns={"label": "workload_class"})


def report(found: Characterised) -> dict[str, Any]:
    """Figures as plain types: of all jobs with a stated class, of those with readings, and of validation."""
    table, model = found.table, found.model
    stated = table[table["stated"] != ""]

    def of(rows: pd.DataFrame) -> dict[str, Any]:
        truth = rows["stated"].map(CLASS_INDEX).to_numpy(dtype=np.int64)
        return scores(rows[[f"p_{name}" for name in WORKLOAD_CLASSES]].to_numpy(float), truth, (rows["label"] != UNKNOWN).to_numpy())

    out: dict[str, Any] = {
        "trained_on": found.trained_on,
        "model": {"temperature": model.temperature, "threshold": model.threshold, "far": model.far, "about": model.about},
        "jobs": len(table),
        "labels": table["label"].value_counts().to_dict(),
        "stated": of(stated),
        "stated_with_readings": of(stated[stated["readings"] > 0]),
        "disagreements": len(disagreements(table)),
        "suggestions": len(suggestions(table)),
        "without_board_limit": sum(len(p.seconds) > 0 and not np.isfinite(p.power_share).any() for p in found.profiles),
    }
    if found.validation is not None:
        v = found.validation
        answered = (v.probabilities.max(axis=1) >= model.threshold) & (v.distance <= model.far)
        out["validation"] = scores(v.probabilities, v.truth, answered)
    return out


def summary(value: Mapping[str, Any]) -> str:
    """The report as text."""
    lines = [f"trained on {value['trained_on']}; {value['jobs']:,} jobs, answers from probability {value['model']['threshold']:.2f} on"]
    rows = {
        "validation": "validation, groups left out",
        "stated": "jobs with a stated class",
        "stated_with_readings": "of these, with readings",
    }
    for name, told in rows.items():
        row = value.get(name, {"jobs": 0})
        if row["jobs"]:
            error = "no answer" if row["error_of_answers"] is None else f"{100 * row['error_of_answers']:.1f} % of answers wrong"
            lines.append(
                f"{told}: {row['jobs']:,} jobs, accuracy {100 * row['accuracy']:.1f} %, {100 * row['coverage']:.1f} % answered, {error}, "
                f"calibration error {row['calibration_error']:.3f}"
            )
    matrix = value["stated"].get("confusion")
    if matrix:
        lines.append(f"{'stated (rows) / most likely':<28}" + "".join(f"{name[:11]:>12}" for name in WORKLOAD_CLASSES))
        lines += [f"{name:<28}" + "".join(f"{count:>12,}" for count in row) for name, row in zip(WORKLOAD_CLASSES, matrix, strict=True)]
    lines.append(
        f"{value['disagreements']:,} answers disagree with the stated class; {value['suggestions']:,} jobs without one got a suggestion"
    )
    if value["without_board_limit"]:
        lines.append(
            f"note: {value['without_board_limit']:,} jobs have readings but no known board limit; name their nodes in inventory= "
            "(and their boards in boards=)"
        )
    return "\n".join(lines)


def write_found(found: Characterised, out: Path) -> list[Path]:
    """All files, each replaced whole."""
    out.mkdir(parents=True, exist_ok=True)
    value = report(found)
    classes = np.where(found.table["stated"] != "", found.table["stated"], found.table["label"])
    watts = power_profiles(found.profiles, classes.tolist())
    texts = {
        "predictions.csv": found.table.to_csv(index=False),
        "disagreements.csv": disagreements(found.table).to_csv(index=False),
        "suggestions.csv": suggestions(found.table).to_csv(index=False),
        "power_profiles.csv": watts.to_csv(index=False),
        "report.json": json.dumps(value, indent=1) + "\n",
    }
    for name, text in texts.items():
        fresh = out / f".{name}.new"
        fresh.write_text(text)
        os.replace(fresh, out / name)
    files = [out / name for name in texts]
    figures: dict[str, Figure] = {}
    if found.validation is not None:
        figures["quality.png"] = quality_figure(found.validation.probabilities, found.validation.truth, found.model.threshold)
    if len(watts):
        figures["watts.png"] = watts_figure(watts)
    for name, figure in figures.items():
        fresh = out / f".{name}.new"
        figure.savefig(fresh, dpi=110, format="png")
        os.replace(fresh, out / name)
        files.append(out / name)
    found.model.save(out / MODEL_FOLDER)
    return [*files, out / MODEL_FOLDER]


def config_of(cfg: DictConfig | Mapping[str, Any]) -> CharacteriseConfig:
    """The typed configuration. Raises `InputError`."""
    raw: Any = OmegaConf.to_container(cfg, resolve=True) if OmegaConf.is_config(cfg) else dict(cfg)
    for key, kind in (("target_error", (int, float)), ("seed", int), ("generated_jobs", int)):
        if isinstance(raw[key], bool) or not isinstance(raw[key], kind):
            raise InputError(f"{raw[key]!r}", where=key, allowed="a number")
    as_of = None
    if raw["as_of"] is not None:
        times, wrong = utc_times([str(raw["as_of"])])
        if wrong.any() or times.isna().any():
            raise InputError(f"{raw['as_of']!r}", where="as_of", allowed="a time such as 2026-01-05T12:00 (UTC)")
        as_of = times.iloc[0]
    text = {key: None if raw[key] is None else str(raw[key]) for key in ("inventory", "boards", "model", "start")}
    options = ClassifierOptions(target_error=float(raw["target_error"]), seed=int(raw["seed"]))
    return CharacteriseConfig(
        lake=LakeConfig(str(raw["lake"]["root"])), out=str(raw["out"]), train=str(raw["train"]), options=options, as_of=as_of,
        generated_jobs=int(raw["generated_jobs"]), **text,
    )  # fmt: skip


@hydra_command("characterise")
def main(cfg: DictConfig) -> int:
    """Answer, print, write."""
    config = config_of(cfg)
    found = characterise(config)
    print(summary(report(found)))
    print("written: " + ", ".join(str(path) for path in write_found(found, Path(config.out))))
    return 0


if __name__ == "__main__":
    main()
