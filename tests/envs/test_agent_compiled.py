"""The compiled rollouts and updates: the torch network's values, autograd's gradients, and the very update of Stable-Baselines3."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO

from envs.agent.compiled import PARAMETERS, STATISTICS, act, loss_gradient
from envs.agent.network import ActionScorer, CandidatePolicy
from envs.agent.ppo import CompiledPPO
from envs.heuristics import JUDGES
from envs.observation import N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout
from envs.reward import RewardSpec
from envs.vec_env import ClusterVecEnv

HIDDEN = 16


def network(seed: int) -> ActionScorer:
    torch.manual_seed(seed)
    made = ActionScorer(N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, ObservationLayout(1, 1).score_index, hidden=HIDDEN, kappa=2.0)
    torch.nn.init.normal_(made.residual.weight)
    return made


def observations_of(layout: ObservationLayout, rows: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    observation = generator.uniform(-1, 1, size=(rows, layout.size)).astype(np.float32)
    candidates = layout.candidates(observation)
    valid = generator.random(candidates.shape[:2]) < generator.uniform(0.1, 1.0)
    valid[np.arange(rows), generator.integers(0, candidates.shape[1], rows)] = True
    candidates[..., 0] = valid
    candidates *= valid[..., None]
    return observation


def flat_of(net: ActionScorer) -> np.ndarray:
    return torch.cat([parameter.detach().reshape(-1) for parameter in net.parameters()]).numpy()


def shape_of(layout: ObservationLayout) -> np.ndarray:
    return np.array([layout.n_candidates, N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, HIDDEN, layout.score_index], dtype=np.int64)


def by_torch(net: ActionScorer, layout: ObservationLayout, observation: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    split = layout.n_candidates * layout.n_candidate_features
    logits, value = net(torch.from_numpy(layout.candidates(observation).copy()), torch.from_numpy(observation[:, split:].copy()))
    return torch.log_softmax(logits, dim=1), value


def sampled(net: ActionScorer, layout: ObservationLayout, observation: np.ndarray, uniforms: np.ndarray) -> tuple[np.ndarray, ...]:
    rows = len(observation)
    out = np.full(rows, -1, np.int64), np.full(rows, np.nan, np.float32), np.full(rows, np.nan, np.float32)
    for low, high in ((0, rows // 3), (rows // 3, rows)):
        act(flat_of(net), shape_of(layout), observation, uniforms, *out, low, high)
    return out


def test_parameters_are_in_the_order_of_the_network():
    assert tuple(name for name, _ in network(0).named_parameters()) == PARAMETERS


@settings(max_examples=30, deadline=None)
@given(pools=st.integers(1, 5), levels=st.integers(1, 4), rows=st.integers(1, 400), seed=st.integers(0, 2**31))
def test_sampling_has_the_probabilities_and_values_of_torch(pools, levels, rows, seed):
    layout, net = ObservationLayout(pools, levels), network(seed % 5)
    observation = observations_of(layout, rows, seed)
    uniforms = np.random.default_rng(seed).random(rows)
    actions, log_probs, values = sampled(net, layout, observation, uniforms)
    with torch.no_grad():
        expected, value = by_torch(net, layout, observation)
    picked = expected.numpy()[np.arange(rows), actions]
    np.testing.assert_allclose(log_probs, picked, atol=1e-5)
    np.testing.assert_allclose(values, value.numpy(), atol=1e-5)
    assert layout.mask(observation)[np.arange(rows), actions].all()
    cumulative = np.exp(expected.numpy().astype(np.float64)).cumsum(axis=1)
    before = np.where(actions > 0, cumulative[np.arange(rows), actions - 1], 0.0)
    assert (uniforms > before - 1e-5).all()
    assert (uniforms < cumulative[np.arange(rows), actions] + 1e-5).all()


@settings(max_examples=20, deadline=None)
@given(pools=st.integers(1, 4), levels=st.integers(1, 3), rows=st.integers(2, 300), seed=st.integers(0, 2**31))
def test_the_gradient_is_that_of_autograd(pools, levels, rows, seed):
    layout, net = ObservationLayout(pools, levels), network(seed % 5)
    generator = np.random.default_rng(seed)
    observation = observations_of(layout, rows, seed)
    actions, log_probs, _ = sampled(net, layout, observation, generator.random(rows))
    old = log_probs + generator.normal(0, 0.2, rows).astype(np.float32)
    advantages, returns = (generator.normal(size=rows).astype(np.float32) for _ in range(2))
    clip, ent_coef, vf_coef = 0.2, 0.03, 0.5
    numbers = np.array([1 / rows, clip, ent_coef, vf_coef, 0.1, 2.0], np.float32)
    gradient, statistics = np.zeros_like(flat_of(net)), np.zeros(len(STATISTICS))
    order, half = generator.permutation(rows), rows // 2
    samples = (observation, actions, old, advantages, returns, order)
    for low, high in ((0, half), (half, rows)):
        loss_gradient(flat_of(net), gradient, shape_of(layout), *samples, low, high, numbers, statistics)
    expected, value = by_torch(net, layout, observation)
    chosen = expected[torch.arange(rows), torch.from_numpy(actions)]
    ratio = torch.exp(chosen - torch.from_numpy(old))
    scaled = torch.from_numpy((advantages - 0.1) * 2.0)
    policy = -torch.min(scaled * ratio, scaled * ratio.clamp(1 - clip, 1 + clip)).mean()
    entropy = torch.distributions.Categorical(logits=expected).entropy().mean()
    value_loss = ((torch.from_numpy(returns) - value) ** 2).mean()
    (policy - ent_coef * entropy + vf_coef * value_loss).backward()
    wanted = torch.cat([parameter.grad.reshape(-1) for parameter in net.parameters()]).numpy()
    np.testing.assert_allclose(gradient, wanted, atol=1e-5 * max(1.0, np.abs(wanted).max()))
    means = dict(zip(STATISTICS, statistics / rows, strict=True))
    assert means["policy_loss"] == pytest.approx(policy.item(), abs=1e-5)
    assert means["value_loss"] == pytest.approx(value_loss.item(), rel=1e-4)
    assert means["entropy"] == pytest.approx(entropy.item(), abs=1e-5)
    assert means["clip_fraction"] == pytest.approx(((ratio - 1).abs() > clip).float().mean().item(), abs=1e-6)


def model_of(world, num_envs: int = 8, **options) -> CompiledPPO:
    env = ClusterVecEnv(world, num_envs, RewardSpec(), JUDGES["lookahead"].settings, seed=1, reward_mode="regret")
    policy = {"layout": env.layout, "score_index": env.layout.score_index, "hidden": HIDDEN, "kappa": 5.0}
    policy["optimizer_kwargs"] = {"eps": 1e-5, "fused": True}
    defaults = {"n_steps": 32, "batch_size": 64, "n_epochs": 3, "learning_rate": 1e-3, "ent_coef": 0.01, "target_kl": 0.02, "seed": 0}
    return CompiledPPO(CandidatePolicy, env, policy_kwargs=policy, device="cpu", **(defaults | options))


def test_an_update_is_that_of_stable_baselines3(agent_world):
    """The same rollout through ``PPO.train`` and the compiled one: minibatches, clipping, early stop and optimiser as they are there."""
    model = model_of(agent_world)
    model.learn(256)
    model.collect_rollouts(model.env, model._init_callback(None), model.rollout_buffer, model.n_steps)
    start, optimizer = model.flat.clone(), copy.deepcopy(model.policy.optimizer.state_dict())
    state, results = np.random.get_state(), {}
    for name, update in (("compiled", CompiledPPO.train), ("stock", PPO.train)):
        with torch.no_grad():
            model.flat.copy_(start)
        model.policy.optimizer.load_state_dict(copy.deepcopy(optimizer))
        np.random.set_state(state)
        before = model._n_updates
        update(model)
        results[name] = (model.flat.clone().numpy(), dict(model.logger.name_to_value), model._n_updates - before)
    np.testing.assert_allclose(results["compiled"][0], results["stock"][0], atol=2e-5)
    assert not np.allclose(results["stock"][0], start.numpy(), atol=1e-3)
    assert results["compiled"][2] == results["stock"][2]
    logged, stock = results["compiled"][1], results["stock"][1]
    for key in ("entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "clip_fraction", "explained_variance"):
        assert logged[f"train/{key}"] == pytest.approx(stock[f"train/{key}"], abs=1e-4, rel=1e-3)


def test_results_do_not_depend_on_threads(agent_world):
    weights = []
    for threads in (1, 3):
        model = model_of(agent_world, num_envs=300, n_steps=4, batch_size=600, threads=threads)
        model.learn(3000)
        weights.append(model.flat.clone().numpy())
    np.testing.assert_array_equal(*weights)


def test_parameters_of_the_policy_and_of_the_compiled_code_are_the_same_memory(agent_world):
    model = model_of(agent_world)
    model.policy.load_state_dict({name: torch.full_like(value, 0.5) for name, value in model.policy.state_dict().items()})
    assert (model.flat == 0.5).all()
