"""How good class probabilities are: accuracy, confusion, coverage against error, calibration."""

from __future__ import annotations

from typing import Any

import numpy as np

from telemetry.classes import WORKLOAD_CLASSES

CALIBRATION_BINS = 10


def confusion(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Counts ``[K, K]``: rows are the stated class, columns the predicted one (class numbers ``[N]``)."""
    K = len(WORKLOAD_CLASSES)
    return np.bincount(truth * K + predicted, minlength=K * K).reshape(K, K)


def calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Expected calibration error of the best class (Naeini et al. 2015), ten bins of equal width."""
    best, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((best * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gaps = [np.mean(bins == b) * abs(float(best[bins == b].mean()) - float(right[bins == b].mean())) for b in np.unique(bins)]
    return float(np.sum(gaps))


def coverage_curve(probabilities: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of jobs that get an answer, and the error among them, as the threshold falls; ``[N]`` each."""
    order = np.argsort(-probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != truth)[order]
    count = np.arange(1, len(order) + 1)
    return count / max(len(order), 1), np.cumsum(wrong) / count


def scores(probabilities: np.ndarray, truth: np.ndarray, answered: np.ndarray) -> dict[str, Any]:
    """Figures as plain types.

    Args:
        probabilities: ``[N, K]``.
        truth: class numbers ``[N]``.
        answered: whether an answer was given, bool ``[N]``.
    """
    if not len(truth):
        return {"jobs": 0}
    predicted = probabilities.argmax(axis=1)
    right = predicted == truth
    matrix = confusion(truth, predicted)
    recalls = np.diag(matrix) / np.maximum(matrix.sum(axis=1), 1)
    return {
        "jobs": len(truth),
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(recalls[matrix.sum(axis=1) > 0].mean()),
        "coverage": float(answered.mean()),
        "error_of_answers": float((~right[answered]).mean()) if answered.any() else None,
        "calibration_error": calibration_error(probabilities, truth),
        "confusion": matrix.tolist(),
    }
