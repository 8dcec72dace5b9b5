"""Compiled scoring of candidates: the network of :mod:`envs.agent.network` for rows of observations, on one core, without torch.

Only candidates that the mask allows are computed. The weights lie transposed, so that every inner loop runs over neighbouring values of
the hidden layer, and an input of zero (an unused feature, a unit that the rectifier has cut) costs nothing. A row gives the same bits
alone and in a batch, whatever its neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

MASKED_LOGIT = np.float32(-1e8)


class PackedScorer(NamedTuple):
    """Weights of a scorer with F candidate features, G global features and H hidden units, float32, contiguous."""

    from_candidate: np.ndarray  # [F, H]
    candidate_bias: np.ndarray  # [H]
    from_global: np.ndarray  # [G, H]
    mix: np.ndarray  # [H, H]
    mix_bias: np.ndarray  # [H]
    mix_context: np.ndarray  # [H, H]
    residual: np.ndarray  # [H]
    scalars: np.ndarray  # [2], bias of the residual and inverse temperature of the look-ahead score


def pack_scorer(weights: dict[str, np.ndarray]) -> PackedScorer:
    """Lay out checked weights, named as in ``envs.agent.network.ActionScorer``, for :func:`score_rows`."""

    def transposed(name: str) -> np.ndarray:
        return np.ascontiguousarray(weights[name].T, dtype=np.float32)

    return PackedScorer(
        transposed("from_candidate.weight"),
        np.ascontiguousarray(weights["from_candidate.bias"], dtype=np.float32),
        transposed("from_global.weight"),
        transposed("mix.weight"),
        np.ascontiguousarray(weights["mix.bias"], dtype=np.float32),
        transposed("mix_context.weight"),
        np.ascontiguousarray(weights["residual.weight"][0], dtype=np.float32),
        np.array([weights["residual.bias"][0], np.exp(np.float32(weights["log_kappa"]))], dtype=np.float32),
    )


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def score_rows(rows, candidates, score_index, packed, logits):
    """Masked logits of observations.

    Args:
        rows: float32 ``[B, D]``, ``candidates`` x F candidate features, then G global ones; feature 0 of a candidate is its mask.
        logits: float32 ``[B, A]``, overwritten.
    """
    features, hidden = packed.from_candidate.shape
    split = candidates * features
    embedded = np.empty((candidates, hidden), dtype=np.float32)
    shared, pooled, context = np.empty(hidden, np.float32), np.empty(hidden, np.float32), np.empty(hidden, np.float32)
    mixed = np.empty(hidden, dtype=np.float32)
    zero = np.float32(0.0)
    for b in range(len(rows)):
        row, count = rows[b], 0
        for h in range(hidden):
            shared[h] = packed.candidate_bias[h]
            pooled[h] = zero
            context[h] = packed.mix_bias[h]
        for g in range(packed.from_global.shape[0]):
            value = row[split + g]
            if value != zero:
                for h in range(hidden):
                    shared[h] += value * packed.from_global[g, h]
        for a in range(candidates):
            logits[b, a] = MASKED_LOGIT
            at = a * features
            if not row[at] > np.float32(0.5):
                continue
            unit = embedded[count]
            for h in range(hidden):
                unit[h] = shared[h]
            for k in range(features):
                value = row[at + k]
                if value != zero:
                    for h in range(hidden):
                        unit[h] += value * packed.from_candidate[k, h]
            for h in range(hidden):
                unit[h] = max(unit[h], zero)
                pooled[h] += unit[h]
            count += 1
        if count == 0:
            continue
        share = np.float32(1.0) / np.float32(count)
        for k in range(hidden):
            value = pooled[k] * share
            if value != zero:
                for h in range(hidden):
                    context[h] += value * packed.mix_context[k, h]
        at = 0
        for a in range(candidates):
            if not row[a * features] > np.float32(0.5):
                continue
            unit = embedded[at]
            at += 1
            for h in range(hidden):
                mixed[h] = context[h]
            for k in range(hidden):
                value = unit[k]
                if value != zero:
                    for h in range(hidden):
                        mixed[h] += value * packed.mix[k, h]
            total = packed.scalars[0]
            for h in range(hidden):
                total += max(mixed[h], zero) * packed.residual[h]
            logits[b, a] = total - packed.scalars[1] * row[a * features + score_index]
