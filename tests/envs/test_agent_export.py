"""The exported policy: the compiled scorer equals torch, one row equals the batch, and files that are not its own are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from envs.agent.inference import MASKED_LOGIT
from envs.agent.network import ActionScorer
from envs.agent.policy import CONFIG_FILE, SHAPES, WEIGHTS_FILE, AgentPolicy
from envs.heuristics import JUDGES
from envs.observation import LIMIT, N_CANDIDATE_FEATURES, N_GLOBAL_FEATURES, SCORE, ObservationLayout
from telemetry.errors import InputError

SETTINGS = JUDGES["lookahead"].settings


def scorer(seed=0, hidden=16, features=N_CANDIDATE_FEATURES, globals_=N_GLOBAL_FEATURES):
    torch.manual_seed(seed)
    network = ActionScorer(features, globals_, SCORE, hidden=hidden)
    torch.nn.init.normal_(network.residual.weight)
    torch.nn.init.normal_(network.residual.bias)
    return network


def exported(network):
    return AgentPolicy({key: value.detach().numpy() for key, value in network.state_dict().items()}, SETTINGS, network.score_index)


def rows_of(layout, rows, seed):
    generator = np.random.default_rng(seed)
    observation = generator.uniform(-LIMIT, LIMIT, size=(rows, layout.size)).astype(np.float32)
    observation[generator.random(observation.shape) < 0.3] = 0.0
    layout.candidates(observation)[..., 0] = generator.random((rows, layout.n_candidates)) < 0.6
    return observation


@settings(max_examples=40, deadline=None)
@given(
    pools=st.sampled_from([1, 4, 16]),
    levels=st.integers(1, 4),
    hidden=st.sampled_from([1, 8, 33, 64]),
    seed=st.integers(0, 2**31),
)
def test_compiled_scores_are_those_of_torch_to_one_in_a_hundred_thousand(pools, levels, hidden, seed):
    layout = ObservationLayout(pools, levels)
    network, observation = scorer(seed % 5, hidden), rows_of(layout, 4, seed)
    split = layout.n_candidates * layout.n_candidate_features
    with torch.no_grad():
        expected, _ = network(torch.from_numpy(layout.candidates(observation).copy()), torch.from_numpy(observation[:, split:].copy()))
    found = exported(network).logits(observation, layout)
    np.testing.assert_array_equal(found == MASKED_LOGIT, ~layout.mask(observation))
    scale = np.abs(np.where(layout.mask(observation), expected.numpy(), 0.0)).max()
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-5, atol=1e-5 * max(scale, 1.0))


def test_a_row_gives_the_same_bits_alone_and_in_a_batch():
    layout = ObservationLayout(5, 3)
    policy, observation = exported(scorer(hidden=24)), rows_of(layout, 50, 0)
    whole = policy.logits(observation, layout)
    for at in range(50):
        np.testing.assert_array_equal(policy.logits(observation[at : at + 1], layout)[0], whole[at])
    np.testing.assert_array_equal(policy.logits(np.asfortranarray(observation.astype(np.float64)), layout), whole)


def test_a_row_without_candidates_has_only_masked_logits():
    layout = ObservationLayout(2, 2)
    assert (exported(scorer()).logits(np.zeros((1, layout.size), np.float32), layout) == MASKED_LOGIT).all()


def test_a_policy_with_one_more_feature_of_each_kind_is_served_by_its_own_layout():
    class Wider(ObservationLayout):
        n_candidate_features = N_CANDIDATE_FEATURES + 1
        n_global_features = N_GLOBAL_FEATURES + 1

    layout = Wider(3, 2)
    network = scorer(hidden=12, features=N_CANDIDATE_FEATURES + 1, globals_=N_GLOBAL_FEATURES + 1)
    observation = rows_of(layout, 3, 1)
    split = layout.n_candidates * layout.n_candidate_features
    with torch.no_grad():
        expected, _ = network(torch.from_numpy(layout.candidates(observation).copy()), torch.from_numpy(observation[:, split:].copy()))
    np.testing.assert_allclose(exported(network).logits(observation, layout), expected.numpy(), rtol=1e-5, atol=5e-3)
    with pytest.raises(InputError, match="as in training"):
        exported(network).act(rows_of(ObservationLayout(3, 2), 1, 0), ObservationLayout(3, 2))


def test_observations_of_another_length_are_refused():
    with pytest.raises(InputError, match=r"observations of shape \(1, 9\)"):
        exported(scorer()).act(np.zeros((1, 9), np.float32), ObservationLayout(1, 1))


def broken(name, change):
    def apply(weights):
        weights[name] = change(weights[name])

    return apply


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        *[(lambda weights, name=name: weights.pop(name), f"no weights '{name}'") for name in SHAPES],
        (lambda weights: weights.update(backdoor=np.zeros(3, np.float32)), "unknown weights 'backdoor'"),
        (broken("mix.weight", lambda v: v[:, :-1]), r"'mix.weight' has shape \[16, 15\]; allowed: \[16, 16\]"),
        (broken("mix.bias", lambda v: v[None]), r"'mix.bias' has shape \[1, 16\]"),
        (broken("from_candidate.weight", lambda v: v.ravel()), "'from_candidate.weight' has shape"),
        (broken("residual.weight", lambda v: np.vstack([v, v])), "'residual.weight' has shape"),
        (broken("from_global.weight", lambda v: v[:, :0]), "'from_global.weight' has shape"),
        (broken("mix_context.weight", lambda v: v.astype(np.int32)), "'mix_context.weight' holds int32"),
        (broken("residual.bias", lambda v: v * np.nan), "'residual.bias' holds 1 values that are not finite"),
        (broken("value.bias", lambda v: v + np.inf), "'value.bias' holds 1 values that are not finite"),
        (broken("log_kappa", lambda v: np.asarray(v + 100)), "log_kappa 10"),
    ],
)
def test_weights_of_no_such_network_are_refused_on_loading(tmp_path, spoil, message):
    exported(scorer()).save(tmp_path)
    weights = load_file(str(tmp_path / WEIGHTS_FILE))
    spoil(weights)
    save_file(weights, str(tmp_path / WEIGHTS_FILE))
    with pytest.raises(InputError, match=message):
        AgentPolicy.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (WEIGHTS_FILE, b"\x80\x04\x95pickle", "cannot be read"),
        (WEIGHTS_FILE, None, "cannot be read"),
        (CONFIG_FILE, b"{", "cannot be read"),
        (CONFIG_FILE, None, "cannot be read"),
        (CONFIG_FILE, json.dumps({"settings": {}, "score_index": N_CANDIDATE_FEATURES}).encode(), f"score_index {N_CANDIDATE_FEATURES}"),
        (CONFIG_FILE, json.dumps({"settings": {"hold_s": 0}, "score_index": 3}).encode(), "hold_s 0"),
        (CONFIG_FILE, json.dumps({"settings": {"no_such": 0}, "score_index": 3}).encode(), "cannot be read"),
    ],
)
def test_files_that_are_no_policy_are_refused_on_loading(tmp_path, name, content, message):
    exported(scorer()).save(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        AgentPolicy.load(tmp_path)
