"""Frames: the scene against the simulator's own books, and pictures of small and large clusters from reset to end."""

from itertools import pairwise

import numpy as np
import pytest

from envs.cluster import ClusterSpec, PoolSpec, SiteSpec
from envs.gym_env import ClusterEnv
from envs.gym_vector import ClusterVectorEnv
from envs.heuristics import JUDGES
from envs.picture import CLASS_COLOURS, STATE_COLOURS, draw
from envs.scene import DOWN, SLEEP, STATE_NAMES, gpu_shares, scene_of, site_watts
from envs.state import ENERGY, PolicySettings
from telemetry.classes import WORKLOAD_CLASSES
from telemetry.errors import InputError

LOOKAHEAD = JUDGES["lookahead"]
FRAME = (640, 960, 3)


@pytest.fixture(scope="module")
def world(worlds):
    return worlds.random_world(61, count=40, windows=2)


def _walk(env, seed=0):
    """An episode under the look-ahead judge, one observation at a time."""
    observation, _ = env.reset(seed=seed)
    yield
    done = False
    while not done:
        observation, _, done, _, _ = env.step(LOOKAHEAD.act(observation[None], env.layout)[0])
        yield


def _has(frame, colour):
    return bool((frame == np.array(colour, dtype=np.uint8)).all(axis=2).any())


def test_gpus_in_the_scene_are_those_that_the_simulator_has_taken(world):
    env = ClusterEnv(world, settings=LOOKAHEAD.settings)
    fractions = 0
    for _ in _walk(env):
        held = gpu_shares(env.simulator, 0).sum(axis=1)
        np.testing.assert_allclose(1.0 - held, env.simulator.state.gpu_free[0] / 1000.0, atol=1e-12)
        fractions += int(((held > 0) & (held < 1)).sum())
    assert fractions > 0


def test_watts_in_the_scene_are_those_that_are_charged(world):
    """Between two questions within one grid step without any event the energy is the watts shown times the time."""
    env = ClusterEnv(world, settings=PolicySettings(sleep_after_s=-1))
    simulator = env.simulator
    checked, before = 0, None
    for _ in _walk(env):
        at, events = int(simulator.time_s[0]), int((simulator.state.end_s[0] >= 0).sum() + (simulator.state.start_s[0] >= 0).sum())
        energy, watts = simulator.state.site_totals[0, :, ENERGY].copy(), site_watts(simulator, 0).sum(axis=1)
        if before is not None and before[1] == events and before[0] < at and before[0] // 3600 == at // 3600:
            np.testing.assert_allclose(energy - before[2], before[3] * (at - before[0]) / 3.6e6, rtol=1e-9)
            checked += 1
        before = (at, events, energy, watts)
    assert checked > 0


def test_scene_tells_queue_question_and_forecast(world):
    env = ClusterEnv(world, settings=LOOKAHEAD.settings)
    for _ in _walk(env):
        scene = scene_of(env.simulator, 0)
        assert scene.waiting.sum() == env.simulator.state.waiting[0] == scene.jobs["waiting"]
        if scene.question is None:
            break
        names = [candidate.name for candidate in scene.question.candidates]
        assert names == [env.layout.action_name(int(a)) for a in np.flatnonzero(env.action_masks())]
        assert all(candidate.usd is not None for candidate in scene.question.candidates)
        for site in scene.sites:
            past, forecast = np.split(site.usd_per_kwh, 2)
            assert np.array_equal(past, forecast)
    assert scene.done
    assert scene.jobs["ended"] + scene.jobs["rejected"] == scene.jobs["submitted"]


def test_pictures_from_reset_to_end_change_with_the_cluster(world):
    env = ClusterEnv(world, settings=LOOKAHEAD.settings, render_mode="rgb_array")
    with pytest.raises(InputError, match="call reset first"):
        env.render()
    frames = []
    for at, _ in enumerate(_walk(env)):
        if at % 10 == 0 or env.simulator.done[0]:
            frames.append(env.render())
    assert env.simulator.done[0]
    assert all(frame.shape == FRAME and frame.dtype == np.uint8 for frame in frames)
    assert all(not np.array_equal(a, b) for a, b in pairwise(frames))
    assert env.metadata["render_fps"] > 0


def test_the_colour_of_a_class_is_in_the_picture_where_its_job_runs(worlds):
    world = worlds.world_of(worlds.cluster(), [worlds.job("one", workload_class="realtime_inference"), worlds.job("two", submit_s=60)])
    env = ClusterEnv(world, render_mode="rgb_array")
    env.reset(seed=0)
    nodes = (slice(60, 430), slice(14, 600))
    assert not _has(env.render()[nodes], CLASS_COLOURS["realtime_inference"])
    env.step(1)
    frame = env.render()
    assert _has(frame[nodes], CLASS_COLOURS["realtime_inference"])
    assert not _has(frame[nodes], CLASS_COLOURS["training"])


@pytest.mark.parametrize(("nodes", "gpus"), [(1, 1), (4, 8), (300, 8), (3000, 62)])
def test_clusters_of_any_size_are_drawn(worlds, nodes, gpus):
    spec = ClusterSpec("any", (SiteSpec("here"),), tuple(PoolSpec(f"pool{p}", "here", "V100", nodes, gpus) for p in range(2)))
    rows = [worlds.job("x", workload_class="batch_inference")]
    env = ClusterEnv(worlds.world_of(spec, rows, worlds.grid(sites=("here",))), render_mode="rgb_array")
    env.reset(seed=0)
    env.step(1)
    assert env.render().shape == FRAME


def test_every_state_and_class_has_a_colour_and_a_failed_node_shows(world):
    assert set(STATE_COLOURS) == set(range(len(STATE_NAMES)))
    assert set(CLASS_COLOURS) == set(WORKLOAD_CLASSES)
    env = ClusterEnv(world)
    env.reset(seed=0)
    scene = scene_of(env.simulator, 0)
    scene.pools[0].mode[0], scene.pools[1].mode[0] = DOWN, SLEEP
    nodes = draw(scene)[60:430, 14:600]
    assert _has(nodes, STATE_COLOURS[DOWN])
    assert _has(nodes, STATE_COLOURS[SLEEP])


def test_a_batch_gives_a_frame_for_each(world):
    env = ClusterVectorEnv(world, 2, settings=LOOKAHEAD.settings, render_mode="rgb_array")
    env.reset(seed=[0, 1])
    frames = env.render()
    assert len(frames) == 2
    single = ClusterEnv(world, settings=LOOKAHEAD.settings, render_mode="rgb_array")
    single.reset(seed=1)
    assert np.array_equal(frames[1], single.render())
    assert ClusterVectorEnv(world, 2).render() is None


def test_unknown_mode_is_named(world):
    with pytest.raises(InputError, match=r"render_mode 'human'.*ansi, rgb_array"):
        ClusterEnv(world, render_mode="human")
