"""Plays every judge, and random choices with rewards by hindsight, on a small random world; prints how many decisions each made.

Run by ``test_kernel_bounds`` with ``NUMBA_DISABLE_JIT=1``, where rows check their indices.
"""

import importlib.util
from pathlib import Path

import numpy as np

from envs.heuristics import JUDGES
from envs.kernel import run_policy
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv

spec = importlib.util.spec_from_file_location("kernel_worlds", Path(__file__).with_name("kernel_worlds.py"))
worlds = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worlds)


def by_hindsight(seed):
    """Decisions of random choices in an environment whose rewards look back."""
    env = ClusterVecEnv(
        worlds.random_world(5, count=20), 1, RewardSpec(), JUDGES["planner"].settings, 0, reward_mode="regret", stagger=False
    )
    env.reset()
    rng, count, done = np.random.default_rng(seed), 0, False
    while not done:
        _, _, dones, _ = env.step(np.array([rng.choice(np.flatnonzero(env.action_masks()[0]))]))
        count, done = count + 1, bool(dones[0])
    return count


for name, judge in JUDGES.items():
    totals = run_policy(worlds.random_world(3, count=20), judge, RewardSpec())
    print(name, int(totals.decisions.sum()))
print("hindsight", by_hindsight(2))
