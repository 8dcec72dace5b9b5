"""Explanations: shares that sum to the difference, equal to numerical integration, nothing for what is equal, parts of the objective."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.agent.network import ActionScorer
from envs.agent.policy import AgentPolicy
from envs.candidates import OBJECTIVE_PARTS, candidates_of, objective_parts
from envs.explain import NAMES, explain, preferences, probabilities, score_parts
from envs.heuristics import JUDGES
from envs.kernel import Simulator
from envs.observation import N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, SCORE, ObservationLayout
from envs.reward import RewardSpec
from envs.state import PolicySettings
from telemetry.errors import InputError

REWARD = RewardSpec(w_energy=0.7, w_carbon=1.3)
LAYOUT = ObservationLayout(3, 2)


def agent(seed=0, hidden=16, residual=1.0, kappa=80.0):
    torch.manual_seed(seed)
    network = ActionScorer(N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, SCORE, hidden=hidden, kappa=kappa)
    torch.nn.init.normal_(network.residual.weight, std=residual) if residual else None
    weights = {key: value.detach().numpy() for key, value in network.state_dict().items()}
    return AgentPolicy(weights, JUDGES["lookahead"].settings, SCORE)


def row_of(seed, layout=LAYOUT):
    generator = np.random.default_rng(seed)
    row = generator.uniform(-3, 3, layout.size).astype(np.float32)
    candidates = layout.candidates(row[None])[0]
    candidates[:, 0] = generator.random(layout.n_candidates) < 0.7
    candidates[generator.choice(layout.n_candidates, 2, replace=False), 0] = 1.0
    return row


def two_of(row, layout=LAYOUT):
    allowed = np.flatnonzero(layout.mask(row[None])[0])
    return int(allowed[0]), int(allowed[-1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), hidden=st.sampled_from([1, 7, 32, 64]))
def test_shares_sum_to_the_difference_of_the_served_logits(seed, hidden):
    policy, row = agent(seed % 9, hidden), row_of(seed)
    chosen, other = two_of(row)
    why = explain(policy, row, LAYOUT, chosen, other)
    logits = policy.logits(row[None], LAYOUT)[0].astype(float)
    assert abs(sum(why.shares.values()) - why.difference) <= 1e-6
    assert why.difference == pytest.approx(logits[chosen] - logits[other], abs=1e-5 * np.abs(logits[[chosen, other]]).max() + 1e-5)
    assert why.lookahead + why.residual == pytest.approx(why.difference, abs=1e-9)
    back = explain(policy, row, LAYOUT, other, chosen)
    for name, share in why.shares.items():
        assert back.shares[name] == pytest.approx(-share, abs=1e-6), "the line is the same from both ends"


def test_exact_integrals_are_those_of_many_small_steps():
    """Midpoint rule over the straight line with torch's gradients, the context held."""
    policy, row = agent(3, 24, kappa=1.0), row_of(5)
    chosen, other = two_of(row)
    split = LAYOUT.n_candidates * LAYOUT.n_candidate_features
    w = {name: torch.from_numpy(value.astype(np.float64)) for name, value in policy.weights.items()}
    candidates = torch.from_numpy(LAYOUT.candidates(row[None])[0].astype(np.float64))
    globals_, valid = torch.from_numpy(row[split:].astype(np.float64)), candidates[:, 0] > 0.5
    first = w["from_candidate.bias"] + w["from_global.weight"] @ globals_
    pooled = torch.relu(candidates @ w["from_candidate.weight"].T + first)[valid].mean(0)

    def residual(x):
        hidden = torch.relu(x @ w["from_candidate.weight"].T + first)
        return torch.relu(hidden @ w["mix.weight"].T + w["mix.bias"] + w["mix_context.weight"] @ pooled) @ w["residual.weight"][0]

    steps, delta = 20_000, candidates[chosen] - candidates[other]
    along = (candidates[other] + (torch.arange(steps)[:, None] + 0.5) / steps * delta).requires_grad_()
    residual(along).sum().backward()
    expected = (along.grad.mean(0) * delta).numpy()
    expected[SCORE] -= float(delta[SCORE])
    shares = explain(policy, row, LAYOUT, chosen, other).shares
    np.testing.assert_allclose([shares.get(name, 0.0) for name in NAMES], expected, atol=2e-3 * np.abs(expected).max())


def test_an_untrained_agent_differs_by_the_score_alone():
    policy, row = agent(residual=0.0), row_of(1)
    chosen, other = two_of(row)
    why = explain(policy, row, LAYOUT, chosen, other)
    assert list(why.shares) == ["score"]
    assert why.residual == 0.0
    scores = LAYOUT.candidates(row[None])[0, :, SCORE].astype(float)
    assert why.shares["score"] == pytest.approx(-80.0 * (scores[chosen] - scores[other]), rel=1e-6)


def test_features_that_are_equal_have_no_share():
    policy, row = agent(2), row_of(8)
    chosen, other = two_of(row)
    candidates = LAYOUT.candidates(row[None])[0]
    kept = [NAMES.index(name) for name in ("price", "slack")]
    same = [place for place in range(len(NAMES)) if place not in kept]
    candidates[chosen, same] = candidates[other, same]
    why = explain(policy, row, LAYOUT, chosen, other)
    assert set(why.shares) <= {"price", "slack"}
    assert abs(why.difference) > 0


def test_preferences_are_the_logits_and_probabilities_their_softmax():
    policy, row = agent(4), row_of(3)
    ranked = preferences(policy, row, LAYOUT)
    served = policy.logits(row[None], LAYOUT)[0]
    mask = LAYOUT.mask(row[None])[0]
    np.testing.assert_allclose(ranked[mask], served[mask], rtol=1e-4, atol=1e-3)
    assert np.isneginf(ranked[~mask]).all()
    shares = probabilities(ranked)
    assert shares.sum() == pytest.approx(1.0)
    assert (shares[~mask] == 0).all()
    assert shares.argmax() == ranked.argmax()


# Judges that decide by nodes or by a rank of the hour have no ranking of candidates to explain.
UNRANKED = ("best_fit", "fgd", "pwr_fgd", "threshold")


@pytest.mark.parametrize("judge", UNRANKED)
def test_a_judge_without_a_ranking_has_no_preferences(judge):
    assert preferences(JUDGES[judge], row_of(0), LAYOUT) is None


@pytest.mark.parametrize("judge", sorted(set(JUDGES) - set(UNRANKED)))
def test_what_a_judge_prefers_is_what_it_does(worlds, judge):
    policy = JUDGES[judge]
    world = worlds.random_world(13, count=25)
    simulator = Simulator(world, 1, policy.settings, REWARD)
    simulator.reset([0])
    explained = 0
    while not simulator.done[0]:
        row = simulator.observe()[0].copy()
        action = int(policy.act(row[None], simulator.layout)[0])
        ranked = preferences(policy, row, simulator.layout)
        assert ranked[action] == ranked.max()
        others = [a for a in np.flatnonzero(np.isfinite(ranked)) if a != action]
        if others:
            why = explain(policy, row, simulator.layout, action, int(others[0]))
            assert len(why.shares) <= 1
            assert why.difference >= 0
            explained += 1
        simulator.step(np.array([action]))
    assert explained > 10


def test_masked_candidates_and_strange_policies_are_refused():
    row = next(row for row in map(row_of, range(100)) if not LAYOUT.mask(row[None]).all())
    masked = int(np.flatnonzero(~LAYOUT.mask(row[None])[0])[0])
    chosen, _ = two_of(row)
    with pytest.raises(InputError, match="is masked"):
        explain(agent(), row, LAYOUT, chosen, masked)

    class Stranger:
        name, settings = "stranger", PolicySettings()

    assert preferences(Stranger(), row, LAYOUT) is None
    with pytest.raises(InputError, match="policy 'stranger'"):
        explain(Stranger(), row, LAYOUT, *two_of(row))


def test_parts_of_the_objective_sum_to_it_and_to_the_score(worlds):
    policy = JUDGES["lookahead"]
    world = worlds.random_world(4, count=25)
    simulator = Simulator(world, 1, policy.settings, REWARD)
    simulator.reset([0])
    holds = compared = 0
    while not simulator.done[0]:
        row = simulator.observe()[0].copy()
        candidates = candidates_of(simulator)
        assert [candidate.rule == "mask" for candidate in candidates] == (~simulator.mask[0]).tolist()
        parts = objective_parts(simulator, candidates)
        np.testing.assert_array_equal(simulator.observe()[0], row)
        assert set(parts) == set(OBJECTIVE_PARTS)
        for candidate in candidates:
            if candidate.objective_usd is None:
                assert candidate.why_not
                continue
            a = candidate.action
            assert sum(parts[name][a] for name in OBJECTIVE_PARTS) == pytest.approx(candidate.objective_usd, rel=1e-9, abs=1e-12)
            if candidate.verb == "hold":
                bare = candidate.objective_usd - parts["hold_margin"][a]
                assert parts["hold_margin"][a] == pytest.approx(policy.settings.hold_margin * abs(bare), rel=1e-6, abs=1e-9)
                holds += 1
        allowed = np.flatnonzero(simulator.mask[0])
        if len(allowed) > 1:
            shares = score_parts(parts, row, simulator.layout, int(allowed[0]), int(allowed[1]))
            scores = simulator.layout.candidates(row[None])[0, :, SCORE].astype(float)
            assert sum(shares.values()) == pytest.approx(float(scores[allowed[0]] - scores[allowed[1]]), abs=1e-9)
            if np.abs(scores[allowed[:2]]).max() < 9.9:
                assert abs(shares["rounding"]) < 1e-5
                compared += 1
        simulator.step(policy.act(row[None], simulator.layout))
    assert min(holds, compared) > 5
