"""Hypervolumes by hand, by counting random points, and fronts by definition."""

import numpy as np
import pytest

from envs.hypervolume import hypervolume, undominated
from telemetry.errors import InputError


def test_by_hand():
    assert hypervolume([[1.0, 2.0]], [3.0, 4.0]) == pytest.approx(4.0)
    assert hypervolume([[1.0, 3.0], [2.0, 1.0]], [4.0, 4.0]) == pytest.approx(3 * 1 + 2 * 2)
    assert hypervolume([[0.0, 0.0, 0.0]], [1.0, 2.0, 3.0]) == pytest.approx(6.0)
    assert hypervolume([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], [2.0, 2.0, 2.0]) == pytest.approx(2 * 1 * 2 + 1 * 2 * 1 - 1 * 1 * 1)


def test_dominated_equal_and_far_points_add_nothing():
    points = np.array([[1.0, 3.0], [2.0, 1.0]])
    more = np.vstack([points, points, [[2.5, 3.5], [5.0, 0.0], [4.0, 4.0]]])
    assert hypervolume(more, [4.0, 4.0]) == pytest.approx(hypervolume(points, [4.0, 4.0]))
    assert hypervolume(np.zeros((0, 3)), [1.0, 1.0, 1.0]) == 0.0
    assert hypervolume([[2.0, 0.0, 0.0]], [1.0, 1.0, 1.0]) == 0.0


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_against_monte_carlo(dimensions, seed):
    rng = np.random.default_rng(seed)
    points = rng.random((rng.integers(1, 30), dimensions)) * 1.3
    points[: len(points) // 3] = np.round(points[: len(points) // 3], 1)  # equal coordinates
    samples = rng.random((200_000, dimensions))
    hit = np.zeros(len(samples), dtype=bool)
    for point in points:
        hit |= (samples >= point).all(axis=1)
    exact, share = hypervolume(points, np.ones(dimensions)), hit.mean()
    assert abs(exact - share) < 5 * np.sqrt(max(share * (1 - share), 1e-6) / len(samples))


def test_order_of_points_and_of_axes_does_not_matter():
    rng = np.random.default_rng(1)
    points = rng.random((20, 3))
    value = hypervolume(points, [1.0, 1.0, 1.0])
    assert hypervolume(points[::-1], [1.0, 1.0, 1.0]) == pytest.approx(value)
    for axes in ([1, 2, 0], [2, 1, 0]):
        assert hypervolume(points[:, axes], [1.0, 1.0, 1.0]) == pytest.approx(value)


def test_the_front_alone_has_the_whole_volume():
    points = np.random.default_rng(2).random((60, 3))
    front = undominated(points)
    assert 0 < front.sum() < 60
    assert hypervolume(points[front], np.ones(3)) == pytest.approx(hypervolume(points, np.ones(3)), rel=1e-12)
    for index in np.flatnonzero(front):
        less = points[[i for i in np.flatnonzero(front) if i != index]]
        assert hypervolume(less, np.ones(3)) < hypervolume(points, np.ones(3)), "every point of a front adds something"


def test_fronts_by_definition():
    assert undominated([[1.0, 2.0], [2.0, 1.0], [2.0, 2.0], [1.0, 2.0]]).tolist() == [True, True, False, False]
    assert undominated([[1.0, 1.0], [1.0, 2.0]]).tolist() == [True, False]


def test_wrong_shapes_and_values_are_named():
    with pytest.raises(InputError, match=r"\(2, 4\)"):
        hypervolume(np.zeros((2, 4)), np.ones(4))
    with pytest.raises(InputError, match=r"reference \(3,\)"):
        hypervolume(np.zeros((2, 2)), np.ones(3))
    with pytest.raises(InputError, match="not finite"):
        hypervolume([[np.nan, 0.0]], [1.0, 1.0])
