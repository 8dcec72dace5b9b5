"""A classifier of workload classes that knows when it does not know.

Gradient-boosted trees (LightGBM) on `models.characterise.features`; probabilities calibrated by one temperature on out-of-fold predictions
(Guo et al. 2017), with whole groups (nodes or sites) left out; *unknown* where the best probability is below a threshold that holds a
target error on the same predictions, or where the job is unlike those learned from: its Mahalanobis distance in rank-normalised features
exceeds the 99 % of jobs that were left out (Lee et al. 2018 measure the same in a network's features). A saved model is trees as text and
figures as JSON: nothing that is executed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import lightgbm as lgb
import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import ndtri, softmax

from models.characterise.features import FEATURES, feature_table
from telemetry.classes import CLASS_INDEX, WORKLOAD_CLASSES
from telemetry.errors import InputError
from telemetry.job_profiles import JobProfile

UNKNOWN = "unknown"
TREES, FIGURES, FORMAT = "trees.txt", "classifier.json", 1
LEAST_JOBS_PER_CLASS = 20
PREFIXES = (0.3, 0.7)
FAR_SHARE = 0.99
KNOTS = 33
SHRINK = 0.1


@dataclass(frozen=True)
class ClassifierOptions:
    """How it is trained.

    Attributes:
        target_error: share of wrong answers among those that are given.
        folds: most parts that groups are split into.
    """

    target_error: float = 0.05
    folds: int = 5
    trees: int = 120
    leaves: int = 15
    learning_rate: float = 0.06
    least_leaf: int = 15
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.target_error < 1 and self.folds >= 2 and self.trees >= 1 and self.leaves >= 2):
            raise InputError(f"{self}", where="classifier", allowed="an error between 0 and 1, 2 or more folds and leaves, 1 or more trees")


@dataclass(frozen=True)
class Space:
    """Where the jobs of training lie: ``knots [Q, F]`` quantiles of each feature, ``middle [F]``, ``inverse [F, F]`` covariance."""

    knots: np.ndarray
    middle: np.ndarray
    inverse: np.ndarray

    @classmethod
    def of(cls, X: np.ndarray) -> Self:
        filled = np.where(np.isfinite(X).any(axis=0), X, 0.0)  # a feature that was never read
        knots = np.nanquantile(filled, np.linspace(0, 1, KNOTS), axis=0)
        scores = _scores(X, knots)
        covariance = np.cov(scores, rowvar=False) + SHRINK * np.eye(X.shape[1])
        return cls(knots, scores.mean(axis=0), np.linalg.inv(covariance))

    def distance(self, X: np.ndarray) -> np.ndarray:
        """Mahalanobis distance, ``[N]``."""
        moved = _scores(X, self.knots) - self.middle
        return np.sqrt(np.einsum("nf,fg,ng->n", moved, self.inverse, moved))


def _scores(X: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Normal scores of ranks ``[N, F]``; beyond the range they go on growing with the distance in ranges; 0 where not known."""
    out = np.zeros(X.shape)
    ranks = np.linspace(0, 1, len(knots))
    for f in range(X.shape[1]):
        values, grid = X[:, f], knots[:, f]
        # A feature that never differed still may a little: a tenth of its size.
        width = max(float(grid[-1] - grid[0]), 0.1 * (1.0 + abs(float(grid[len(grid) // 2]))))
        inside = ndtri(np.clip(np.interp(values, grid, ranks), 0.01, 0.99))
        beyond = np.maximum(values - grid[-1], 0.0) / width - np.maximum(grid[0] - values, 0.0) / width
        out[:, f] = np.where(np.isfinite(values), inside + 3.0 * np.clip(beyond, -10, 10), 0.0)
    return out


@dataclass(frozen=True)
class Answer:
    """Answers for N jobs: calibrated ``probabilities [N, K]``, ``label [N]`` (a class, or ``unknown``), and whether a job is unlike all."""

    probabilities: np.ndarray
    label: np.ndarray
    far: np.ndarray


@dataclass(frozen=True)
class Validation:
    """Out-of-fold answers of the training jobs, whole groups left out: ``truth [N]`` class numbers, ``probabilities [N, K]``."""

    truth: np.ndarray
    probabilities: np.ndarray
    distance: np.ndarray
    groups: int


class WorkloadClassifier:
    """See the module. Use `train` or `load`."""

    def __init__(self, booster: lgb.Booster, temperature: float, threshold: float, far: float, space: Space, about: dict[str, Any]) -> None:
        self.booster, self.temperature, self.threshold, self.far, self.space, self.about = (
            booster,
            temperature,
            threshold,
            far,
            space,
            about,
        )

    @classmethod
    def train(cls, profiles: Sequence[JobProfile], options: ClassifierOptions | None = None) -> tuple[Self, Validation]:
        """Learn from jobs with a stated class; each is also shown as it was seen earlier (``PREFIXES`` of its time).

        Raises:
            InputError: a class with fewer than ``LEAST_JOBS_PER_CLASS`` jobs.
        """
        chosen = options or ClassifierOptions()
        known = [profile for profile in profiles if profile.workload_class]
        truth = np.array([CLASS_INDEX[profile.workload_class] for profile in known], dtype=np.int64)
        counts = np.bincount(truth, minlength=len(WORKLOAD_CLASSES))
        if counts.min() < LEAST_JOBS_PER_CLASS:
            few = ", ".join(f"{name} {count}" for name, count in zip(WORKLOAD_CLASSES, counts, strict=True) if count < LEAST_JOBS_PER_CLASS)
            raise InputError(
                f"{few} jobs with this class", where="training", allowed=f"{LEAST_JOBS_PER_CLASS} of each class", remedy="train=generated"
            )
        seen = [known, *([p.until(share * p.elapsed_s) for p in known] for share in PREFIXES)]
        tables = [feature_table(part) for part in seen]
        fold = folds_of(known, chosen.folds)
        logits, distance = np.zeros((len(known), len(WORKLOAD_CLASSES))), np.zeros(len(known))
        for number in np.unique(fold):
            learn, left = fold != number, fold == number
            booster = _boosted([table[learn] for table in tables], truth[learn], chosen)
            logits[left] = booster.predict(tables[0][left], raw_score=True)
            distance[left] = Space.of(np.vstack([table[learn] for table in tables])).distance(tables[0][left])
        temperature = fit_temperature(logits, truth)
        probabilities = softmax(logits / temperature, axis=1)
        validation = Validation(truth, probabilities, distance, len({p.group for p in known} - {""}))
        far = float(np.quantile(distance, FAR_SHARE))
        near = distance <= far
        threshold = threshold_for(probabilities[near], truth[near], chosen.target_error)
        about = {
            "jobs": len(known),
            "jobs_by_class": dict(zip(WORKLOAD_CLASSES, counts.tolist(), strict=True)),
            "groups": validation.groups,
        }
        booster = _boosted(tables, truth, chosen)
        return cls(booster, temperature, threshold, far, Space.of(np.vstack(tables)), about), validation

    def answer(self, profiles: Sequence[JobProfile]) -> Answer:
        """Classes of jobs as they are seen in their profiles."""
        if not profiles:
            return Answer(np.zeros((0, len(WORKLOAD_CLASSES))), np.empty(0, dtype=object), np.zeros(0, dtype=bool))
        X = feature_table(profiles)
        probabilities = softmax(np.asarray(self.booster.predict(X, raw_score=True)) / self.temperature, axis=1)
        far = self.space.distance(X) > self.far
        names = np.array(WORKLOAD_CLASSES, dtype=object)[probabilities.argmax(axis=1)]
        sure = (probabilities.max(axis=1) >= self.threshold) & ~far
        return Answer(probabilities, np.where(sure, names, UNKNOWN), far)

    def save(self, folder: Path) -> None:
        """Trees as LightGBM text, the rest as JSON; each file is replaced whole."""
        folder.mkdir(parents=True, exist_ok=True)
        figures = {
            "format": FORMAT, "features": list(FEATURES), "classes": list(WORKLOAD_CLASSES), "temperature": self.temperature,
            "threshold": self.threshold, "far": self.far, "about": self.about,
            "space": {name: getattr(self.space, name).tolist() for name in ("knots", "middle", "inverse")},
        }  # fmt: skip
        for name, text in ((TREES, self.booster.model_to_string()), (FIGURES, json.dumps(figures))):
            fresh = folder / f".{name}.new"
            fresh.write_text(text)
            os.replace(fresh, folder / name)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: a missing or broken file, or one of another version.
        """
        for name in (TREES, FIGURES):
            if not (folder / name).is_file():
                raise InputError("no such file", where=str(folder / name), remedy="python -m pipelines.characterise writes it")
        try:
            value = json.loads((folder / FIGURES).read_text())
            told = (value["format"], value["features"], value["classes"])
            if told != (FORMAT, list(FEATURES), list(WORKLOAD_CLASSES)):
                raise InputError("a model of another version", where=str(folder), remedy="train it again")
            space = Space(*(np.array(value["space"][name], dtype=np.float64) for name in ("knots", "middle", "inverse")))
            booster = lgb.Booster(model_str=(folder / TREES).read_text())
            return cls(booster, float(value["temperature"]), float(value["threshold"]), float(value["far"]), space, dict(value["about"]))
        except (KeyError, TypeError, ValueError, lgb.basic.LightGBMError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"no model: {str(error).splitlines()[0]}", where=str(folder), remedy="train it again") from error


def folds_of(profiles: Sequence[JobProfile], most: int) -> np.ndarray:
    """Fold of each job, ``[N]``: jobs of a group share it; those without a group are dealt out one by one."""
    groups = sorted({profile.group for profile in profiles} - {""})
    count = max(min(most, len(groups)), 2)
    order = {group: number % count for number, group in enumerate(groups)}
    if len(groups) < 2:
        order = {}
    return np.array([order.get(profile.group, number % count) for number, profile in enumerate(profiles)], dtype=np.int64)


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature that loses least on ``logits [N, K]``."""

    def loss(log_t: float) -> float:
        p = softmax(logits / np.exp(log_t), axis=1)[np.arange(len(truth)), truth]
        return float(-np.mean(np.log(np.maximum(p, 1e-12))))

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def threshold_for(probabilities: np.ndarray, truth: np.ndarray, target_error: float) -> float:
    """Least probability at which the answers given are wrong in at most ``target_error``; above 1 when none is."""
    best, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    order = np.argsort(-best, kind="stable")
    error = np.cumsum(~right[order]) / np.arange(1, len(order) + 1)
    good = np.flatnonzero(error <= target_error)
    return float(best[order][good[-1]]) if len(good) else 1.01


def _boosted(tables: Sequence[np.ndarray], truth: np.ndarray, options: ClassifierOptions) -> lgb.Booster:
    counts = np.bincount(truth, minlength=len(WORKLOAD_CLASSES))
    weight = np.sqrt(len(truth) / np.maximum(counts, 1))[truth]
    data = lgb.Dataset(np.vstack(list(tables)), np.tile(truth, len(tables)), weight=np.tile(weight, len(tables)), free_raw_data=True)
    parameters: dict[str, Any] = {
        "objective": "multiclass", "num_class": len(WORKLOAD_CLASSES), "num_leaves": options.leaves, "verbosity": -1,
        "learning_rate": options.learning_rate, "min_data_in_leaf": options.least_leaf, "feature_fraction": 0.7, "bagging_fraction": 0.8,
        "bagging_freq": 1, "lambda_l2": 1.0, "num_threads": 1, "seed": options.seed, "deterministic": True, "force_row_wise": True,
    }  # fmt: skip
    return lgb.train(parameters, data, num_boost_round=options.trees)
