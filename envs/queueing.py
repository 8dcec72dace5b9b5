"""The M/M/c queue: c equal servers, Poisson arrivals, exponential service times.

``arrivals`` and ``service`` are rates per second (of all arrivals, and of one busy server); all arguments broadcast. Where arrivals reach
the capacity of the servers there is no steady state: probabilities of waiting are 1, times infinite.

Sources: Erlang (1917); the recursion of Erlang B and its relation to Erlang C as in Cooper, Introduction to Queueing Theory (1981).
"""

from __future__ import annotations

import numpy as np


def erlang_c(servers, load) -> np.ndarray:
    """Probability that an arrival waits.

    Args:
        servers: whole numbers from 0.
        load: arrivals / service (erlangs).
    """
    c, a = np.broadcast_arrays(np.asarray(servers, dtype=np.int64), np.asarray(load, dtype=np.float64))
    blocked = np.ones(c.shape)
    for count in range(1, int(c.max(initial=0)) + 1):
        more = c >= count
        blocked = np.where(more, a * blocked / (count + a * blocked), blocked)
    return waits(c, a, blocked)


def waits(servers, load, blocked) -> np.ndarray:
    """Erlang C from Erlang B (``blocked``) of as many servers."""
    c = np.maximum(servers, 1)
    stable = (np.asarray(servers) > 0) & (load < servers)
    use = np.where(stable, load / c, 0.0)
    return np.where(stable, blocked / (1.0 - use * (1.0 - blocked)), 1.0)


def mean_response_s(servers, arrivals, service, wait_probability) -> np.ndarray:
    """Mean of waiting and service, seconds."""
    spare = np.asarray(servers * service - arrivals, dtype=np.float64)
    stable = spare > 0
    return np.where(stable, 1.0 / service + wait_probability / np.where(stable, spare, 1.0), np.inf)


def wait_beyond(servers, arrivals, service, wait_probability, seconds) -> np.ndarray:
    """Share of arrivals that wait longer than ``seconds``: an exponential tail."""
    spare = np.asarray(servers * service - arrivals, dtype=np.float64)
    return np.where(spare > 0, wait_probability * np.exp(-np.maximum(spare, 0.0) * seconds), 1.0)


def response_beyond(servers, arrivals, service, wait_probability, seconds) -> np.ndarray:
    """Share of arrivals whose waiting and service take longer than ``seconds``.

    Service alone takes longer with probability exp(-service s); those who wait have the sum of two exponential times ahead of them, of
    rates ``service`` and ``spare`` = capacity - arrivals.
    """
    spare = np.asarray(servers * service - arrivals, dtype=np.float64)
    rate = np.asarray(service, dtype=np.float64)
    gap = np.abs(spare - rate) * seconds
    # (exp(-a s) - exp(-b s)) / (b - a) without cancellation where a and b are near each other.
    ratio = np.where(gap > 1e-12, -np.expm1(-gap) / np.where(gap > 1e-12, gap, 1.0), 1.0)
    both = rate * seconds * np.exp(-np.minimum(np.maximum(spare, 0.0), rate) * seconds) * ratio
    return np.where(spare > 0, np.minimum(np.exp(-rate * seconds) + wait_probability * both, 1.0), 1.0)
