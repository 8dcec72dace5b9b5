"""The action scorer compiled: sampling for rollouts, and the exact gradient of PPO's loss for updates.

The maths is that of :class:`envs.agent.network.ActionScorer`, whose parameters are used in place, as one flat vector in the order of
``named_parameters``; tests hold values to the torch network and gradients to its autograd. What is saved: only candidates that the mask
allows are computed, a chunk of observations stays in the processor's cache from the first layer to the last gradient, nothing is
allocated or copied per operation, and no thread pool spins while other work wants the cores.
"""

from __future__ import annotations

import numpy as np
from numba import njit

CHUNK_ROWS = 256  # candidates of a chunk: 32 KiB per activation at 32 hidden units, and below the size at which BLAS starts threads
STATISTICS: tuple[str, ...] = ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")
PARAMETERS: tuple[str, ...] = (
    "log_kappa",
    "from_candidate.weight",
    "from_candidate.bias",
    "from_global.weight",
    "mix.weight",
    "mix.bias",
    "mix_context.weight",
    "residual.weight",
    "residual.bias",
    "value_hidden.weight",
    "value_hidden.bias",
    "value.weight",
    "value.bias",
)

_inner = njit(nogil=True, fastmath=True, error_model="numpy")
_entry = njit(nogil=True, fastmath=True, error_model="numpy", cache=True)
ZERO, ONE = np.float32(0.0), np.float32(1.0)


@_inner
def _views(flat, n_features, n_globals, n_hidden):
    """Parameters (or their gradients) by name, as views of a flat vector; names and order as in ``PARAMETERS``."""
    f, g, h = n_features, n_globals, n_hidden
    at = 1
    from_candidate = flat[at : at + h * f].reshape(h, f)
    at += h * f
    from_candidate_bias = flat[at : at + h]
    at += h
    from_global = flat[at : at + h * g].reshape(h, g)
    at += h * g
    mix = flat[at : at + h * h].reshape(h, h)
    at += h * h
    mix_bias = flat[at : at + h]
    at += h
    mix_context = flat[at : at + h * h].reshape(h, h)
    at += h * h
    residual = flat[at : at + h]
    at += h
    residual_bias = flat[at : at + 1]
    at += 1
    value_hidden = flat[at : at + h * (h + g)].reshape(h, h + g)
    at += h * (h + g)
    value_hidden_bias = flat[at : at + h]
    at += h
    value = flat[at : at + h]
    at += h
    value_bias = flat[at : at + 1]
    return (
        flat[:1],
        from_candidate,
        from_candidate_bias,
        from_global,
        mix,
        mix_bias,
        mix_context,
        residual,
        residual_bias,
        value_hidden,
        value_hidden_bias,
        value,
        value_bias,
    )


@_inner
def _gather(observations, index, at, end, n_candidates, x, globals_, first, candidate):
    """Copy the allowed candidates of observations ``index[at], ...`` into ``x`` while they fit; how many observations were taken."""
    n_features, n_globals = x.shape[1], globals_.shape[1]
    taken = rows = 0
    first[0] = 0
    while at + taken < end and taken < len(globals_) and rows + n_candidates <= len(x):
        observation = observations[index[at + taken]]
        for a in range(n_candidates):
            base = a * n_features
            if observation[base] > 0.5:
                for k in range(n_features):
                    x[rows, k] = observation[base + k]
                candidate[rows] = a
                rows += 1
        base = n_candidates * n_features
        for k in range(n_globals):
            globals_[taken, k] = observation[base + k]
        taken += 1
        first[taken] = rows
    return taken


@_inner
def _forward(weights, score_index, taken, x, globals_, first, embedded, pooled, joined, context, mixed, hidden, logits, values):
    """Logits per candidate and values per observation of one chunk; activations stay in the work arrays for the gradient."""
    log_kappa, from_candidate, candidate_bias, from_global, mix, mix_bias, mix_context, residual, residual_bias = weights[:9]
    value_hidden, value_hidden_bias, value, value_bias = weights[9:]
    n_hidden, n_globals, rows = len(candidate_bias), globals_.shape[1], first[taken]
    np.dot(x[:rows], from_candidate.T, embedded[:rows])
    np.dot(globals_[:taken], from_global.T, context[:taken])
    for c in range(taken):
        for h in range(n_hidden):
            context[c, h] += candidate_bias[h]
            pooled[c, h] = ZERO
        for r in range(first[c], first[c + 1]):
            for h in range(n_hidden):
                embedded[r, h] = max(embedded[r, h] + context[c, h], ZERO)
                pooled[c, h] += embedded[r, h]
        share = ONE / np.float32(max(first[c + 1] - first[c], 1))
        for h in range(n_hidden):
            pooled[c, h] *= share
            joined[c, h] = pooled[c, h]
        for k in range(n_globals):
            joined[c, n_hidden + k] = globals_[c, k]
    np.dot(joined[:taken], value_hidden.T, hidden[:taken])
    np.dot(pooled[:taken], mix_context.T, context[:taken])
    np.dot(embedded[:rows], mix.T, mixed[:rows])
    kappa = np.float32(np.exp(log_kappa[0]))
    for c in range(taken):
        total = value_bias[0]
        for h in range(n_hidden):
            hidden[c, h] = max(hidden[c, h] + value_hidden_bias[h], ZERO)
            total += hidden[c, h] * value[h]
            context[c, h] += mix_bias[h]
        values[c] = total
        for r in range(first[c], first[c + 1]):
            logit = residual_bias[0] - kappa * x[r, score_index]
            for h in range(n_hidden):
                mixed[r, h] = max(mixed[r, h] + context[c, h], ZERO)
                logit += mixed[r, h] * residual[h]
            logits[r] = logit


@_inner
def _log_softmax(logits, low, high):
    """Turn logits ``low..high`` into log-probabilities, in place."""
    top = logits[low]
    for r in range(low + 1, high):
        top = max(top, logits[r])
    total = ZERO
    for r in range(low, high):
        total += np.float32(np.exp(logits[r] - top))
    shift = top + np.float32(np.log(total))
    for r in range(low, high):
        logits[r] -= shift


@_inner
def _work(n_candidates, n_features, n_globals, n_hidden):
    """Work arrays of one chunk."""
    rows = max(CHUNK_ROWS, n_candidates)
    observations = max(1, rows // 2)
    x = np.empty((rows, n_features), np.float32)
    globals_ = np.empty((observations, n_globals), np.float32)
    first = np.zeros(observations + 1, np.int64)
    candidate = np.empty(rows, np.int64)
    embedded = np.empty((rows, n_hidden), np.float32)
    pooled = np.empty((observations, n_hidden), np.float32)
    joined = np.empty((observations, n_hidden + n_globals), np.float32)
    context = np.empty((observations, n_hidden), np.float32)
    mixed = np.empty((rows, n_hidden), np.float32)
    hidden = np.empty((observations, n_hidden), np.float32)
    return x, globals_, first, candidate, embedded, pooled, joined, context, mixed, hidden


@_entry
def act(flat, shape, observations, uniforms, actions, log_probs, values, low, high):
    """Sample an action for observations ``low <= b < high``.

    Args:
        flat: parameters, float32 ``[n]``.
        shape: int64 ``[5]``: A candidates, F and G features, H hidden units, index of the score.
        observations: float32 ``[B, D]``.
        uniforms: float64 ``[B]`` in [0, 1), one draw for each observation.
        actions, log_probs, values: ``[B]``, written.
    """
    n_candidates, n_features, n_globals, n_hidden, score_index = shape[0], shape[1], shape[2], shape[3], shape[4]
    weights = _views(flat, n_features, n_globals, n_hidden)
    x, globals_, first, candidate, embedded, pooled, joined, context, mixed, hidden = _work(n_candidates, n_features, n_globals, n_hidden)
    logits, chunk_values = np.empty(len(x), np.float32), np.empty(len(globals_), np.float32)
    index = np.arange(low, high)
    at = 0
    while at < len(index):
        taken = _gather(observations, index, at, len(index), n_candidates, x, globals_, first, candidate)
        _forward(weights, score_index, taken, x, globals_, first, embedded, pooled, joined, context, mixed, hidden, logits, chunk_values)
        for c in range(taken):
            b = low + at + c
            begin, end = first[c], first[c + 1]
            values[b] = chunk_values[c]
            actions[b], log_probs[b] = 0, ZERO
            if end == begin:
                continue
            _log_softmax(logits, begin, end)
            left, chosen = uniforms[b], begin
            for r in range(begin, end):
                chosen = r
                left -= np.exp(np.float64(logits[r]))
                if left < 0.0:
                    break
            actions[b], log_probs[b] = candidate[chosen], logits[chosen]
        at += taken


@_inner
def _loss_gradient(logits, probability, low, high, chosen, advantage, old_log_prob, scale, clip_range, ent_coef, statistics):
    """Replace log-probabilities ``low..high`` by the loss's gradient with respect to the logits; adds to ``statistics``."""
    entropy = ZERO
    for r in range(low, high):
        probability[r] = np.float32(np.exp(logits[r]))
        entropy -= probability[r] * logits[r]
    change = logits[chosen] - old_log_prob
    ratio = np.float32(np.exp(change))
    clipped = min(max(ratio, ONE - clip_range), ONE + clip_range)
    plain, bounded = advantage * ratio, advantage * clipped
    slope = -plain * scale if plain <= bounded else ZERO
    for r in range(low, high):
        share = probability[r]
        gradient = -slope * share + ent_coef * scale * share * (logits[r] + entropy)
        logits[r] = gradient + slope if r == chosen else gradient
    statistics[0] -= np.float64(min(plain, bounded))
    statistics[2] += np.float64(entropy)
    statistics[3] += np.float64(ratio - ONE - change)
    statistics[4] += 1.0 if abs(ratio - ONE) > clip_range else 0.0


@_inner
def _add_outer(target, left, right, product):
    """``target += left.T @ right`` (``[N, I]`` and ``[N, J]`` to ``[I, J]``)."""
    np.dot(left.T, right, product)
    for i in range(target.shape[0]):
        for j in range(target.shape[1]):
            target[i, j] += product[i, j]


@_entry
def loss_gradient(flat, gradient, shape, observations, actions, old_log_probs, advantages, returns, index, low, high, numbers, statistics):
    """Add the gradient of PPO's clipped loss over samples ``index[low:high]`` to ``gradient``, and sums to ``statistics``.

    loss = -mean min(A r, A clip(r)) - ent_coef mean entropy + vf_coef mean (return - value)^2, as in stable-baselines3.

    Args:
        gradient: float32 ``[n]``, as ``flat``.
        observations, actions, old_log_probs, advantages, returns: of all N samples, ``[N, D]`` and ``[N]``.
        numbers: float32 ``[6]``: 1 / samples of the minibatch, clip range, ent_coef, vf_coef, and mean and 1 / std of its advantages.
        statistics: float64 ``[5]``, sums by ``STATISTICS``.
    """
    n_candidates, n_features, n_globals, n_hidden, score_index = shape[0], shape[1], shape[2], shape[3], shape[4]
    scale, clip_range, ent_coef, vf_coef, center, spread = numbers[0], numbers[1], numbers[2], numbers[3], numbers[4], numbers[5]
    weights = _views(flat, n_features, n_globals, n_hidden)
    sums = _views(gradient, n_features, n_globals, n_hidden)
    mix, mix_context, residual, value_hidden, value = weights[4], weights[6], weights[7], weights[9], weights[11]
    x, globals_, first, candidate, embedded, pooled, joined, context, mixed, hidden = _work(n_candidates, n_features, n_globals, n_hidden)
    logits, probability, values = np.empty(len(x), np.float32), np.empty(len(x), np.float32), np.empty(len(globals_), np.float32)
    d_embedded, d_context, d_joined = np.empty_like(embedded), np.empty_like(context), np.empty_like(joined)
    d_pooled = np.empty_like(pooled)
    by_candidate, by_global = np.empty((n_hidden, n_features), np.float32), np.empty((n_hidden, n_globals), np.float32)
    by_hidden, by_joined = np.empty((n_hidden, n_hidden), np.float32), np.empty((n_hidden, n_hidden + n_globals), np.float32)
    kappa = np.float32(np.exp(weights[0][0]))
    at = low
    while at < high:
        taken = _gather(observations, index, at, high, n_candidates, x, globals_, first, candidate)
        rows = first[taken]
        _forward(weights, score_index, taken, x, globals_, first, embedded, pooled, joined, context, mixed, hidden, logits, values)
        for c in range(taken):
            n = index[at + c]
            begin, end = first[c], first[c + 1]
            chosen = begin
            for r in range(begin, end):
                if candidate[r] == actions[n]:
                    chosen = r
            if end > begin:
                _log_softmax(logits, begin, end)
                advantage = (advantages[n] - center) * spread
                _loss_gradient(
                    logits, probability, begin, end, chosen, advantage, old_log_probs[n], scale, clip_range, ent_coef, statistics
                )
            # From the logits to the mixing layer.
            for h in range(n_hidden):
                d_context[c, h] = ZERO
            for r in range(begin, end):
                slope = logits[r]
                sums[0][0] -= slope * kappa * x[r, score_index]
                sums[8][0] += slope
                for h in range(n_hidden):
                    sums[7][h] += slope * mixed[r, h]
                    mixed[r, h] = slope * residual[h] if mixed[r, h] > ZERO else ZERO
                    d_context[c, h] += mixed[r, h]
            # From the value to its hidden layer.
            error = values[c] - returns[n]
            statistics[1] += np.float64(error * error)
            slope = np.float32(2.0) * vf_coef * scale * error
            sums[12][0] += slope
            for h in range(n_hidden):
                sums[11][h] += slope * hidden[c, h]
                hidden[c, h] = slope * value[h] if hidden[c, h] > ZERO else ZERO
                sums[10][h] += hidden[c, h]
                sums[5][h] += d_context[c, h]
        _add_outer(sums[4], mixed[:rows], embedded[:rows], by_hidden)
        _add_outer(sums[6], d_context[:taken], pooled[:taken], by_hidden)
        _add_outer(sums[9], hidden[:taken], joined[:taken], by_joined)
        np.dot(mixed[:rows], mix, d_embedded[:rows])
        np.dot(d_context[:taken], mix_context, d_pooled[:taken])
        np.dot(hidden[:taken], value_hidden, d_joined[:taken])
        # From the embeddings to the features.
        for c in range(taken):
            share = ONE / np.float32(max(first[c + 1] - first[c], 1))
            for h in range(n_hidden):
                d_pooled[c, h] = (d_pooled[c, h] + d_joined[c, h]) * share
                d_context[c, h] = ZERO
            for r in range(first[c], first[c + 1]):
                for h in range(n_hidden):
                    slope = d_embedded[r, h] + d_pooled[c, h] if embedded[r, h] > ZERO else ZERO
                    d_embedded[r, h] = slope
                    d_context[c, h] += slope
            for h in range(n_hidden):
                sums[2][h] += d_context[c, h]
        _add_outer(sums[1], d_embedded[:rows], x[:rows], by_candidate)
        _add_outer(sums[3], d_context[:taken], globals_[:taken], by_global)
        at += taken
