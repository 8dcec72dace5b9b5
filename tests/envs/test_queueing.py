"""Erlang C against tabulated and closed values, response times against a simulated queue."""

import heapq

import numpy as np
import pytest

from envs.queueing import erlang_c, mean_response_s, response_beyond, wait_beyond


@pytest.mark.parametrize(
    ("servers", "load", "known"),
    [
        (1, 0.6, 0.6),  # M/M/1: the server is busy
        (2, 1.0, 1 / 3),  # closed form a^2 / (2 + a)
        (2, 1.5, 1.5**2 / 3.5),
        (3, 2.0, 4 / 9),
        (5, 4.0, 0.5541),  # tables of the M/M/c queue
        (10, 8.0, 0.4092),
        (11, 10.0, 0.6821),
    ],
)
def test_erlang_c_against_known_values(servers, load, known):
    assert erlang_c(servers, load) == pytest.approx(known, abs=1e-4)


def test_erlang_c_by_its_definition_and_at_its_limits():
    servers = np.arange(1, 40)
    load = 0.83 * servers
    expected = []
    for c, a in zip(servers, load, strict=True):
        terms = np.cumprod([1.0, *(a / np.arange(1, c + 1))])
        last = terms[c] / (1 - a / c)
        expected.append(last / (terms[:c].sum() + last))
    np.testing.assert_allclose(erlang_c(servers, load), expected, rtol=1e-12)
    assert erlang_c(0, 0.0) == 1.0
    assert erlang_c(4, 4.0) == 1.0
    assert erlang_c(4, 0.0) == 0.0
    assert 0 < erlang_c(5000, 4990.0) < 1


def test_mean_response_of_one_server():
    assert mean_response_s(1, 0.6, 1.0, erlang_c(1, 0.6)) == pytest.approx(1 / (1 - 0.6))
    assert mean_response_s(2, 2.0, 1.0, 1.0) == np.inf
    assert response_beyond(2, 2.0, 1.0, 1.0, 3.0) == 1.0
    assert response_beyond(1, 0.6, 1.0, 0.6, 2.0) == pytest.approx(np.exp(-0.4 * 2.0))
    assert wait_beyond(1, 0.6, 1.0, 0.6, 2.0) == pytest.approx(0.6 * np.exp(-0.4 * 2.0))


def test_response_tail_is_continuous_where_the_two_rates_meet():
    arrivals = 2.0 + np.array([-1e-3, -1e-9, 0.0, 1e-9, 1e-3])
    tail = response_beyond(3, arrivals, 1.0, 0.4, 2.0)
    assert np.ptp(tail) < 1e-3
    assert tail[2] == pytest.approx(np.exp(-2.0) + 0.4 * 2.0 * np.exp(-2.0))
    assert np.isfinite(response_beyond(3, 2.999999, 1.0, 0.99, 1e6))


def test_against_a_simulated_queue():
    rng = np.random.default_rng(2)
    servers, arrivals, service, count = 3, 2.4, 1.0, 200_000
    times = np.cumsum(rng.exponential(1 / arrivals, count))
    free = [0.0] * servers
    wait = np.empty(count)
    works = rng.exponential(1 / service, count)
    for index, (at, work) in enumerate(zip(times, works, strict=True)):
        begin = max(at, heapq.heappop(free))
        wait[index] = begin - at
        heapq.heappush(free, begin + work)
    probability = erlang_c(servers, arrivals / service)
    response = wait + works
    assert (wait > 0).mean() == pytest.approx(probability, abs=0.02)
    assert response.mean() == pytest.approx(mean_response_s(servers, arrivals, service, probability), rel=0.04)
    for seconds in (0.5, 2.0, 6.0):
        assert (wait > seconds).mean() == pytest.approx(wait_beyond(servers, arrivals, service, probability, seconds), abs=0.015)
        assert (response > seconds).mean() == pytest.approx(response_beyond(servers, arrivals, service, probability, seconds), abs=0.015)
