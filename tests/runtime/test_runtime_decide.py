"""The command: decisions from a verified policy in a new process, refusals, and no answer from a model in doubt."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.heuristics import JUDGES
from envs.observation import N_CANDIDATE_FEATURES, ObservationLayout
from envs.reward import RewardSpec
from envs.snapshot import charged_kw, forecast_integral, restore
from registry.keys import trust_folder
from registry.loading import VerificationError, load_policy
from registry.mlflow_client import quiet
from registry.packaging import judge_weights
from registry.tracking import open_tracking
from runtime.decide import EXIT_INPUT, EXIT_REFUSED, EXIT_UNVERIFIED, main
from runtime.decision import decide
from runtime.jobs import parse_job, read_job
from runtime.state_file import read_state

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "deploy" / "examples"
NAME = "scheduling-policy"


def run(capsys, *arguments):
    status = main([*map(str, arguments), "--no-forecasts"])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def job_file(tmp_path):
    def write(**change):
        content = json.loads((EXAMPLES / "job.json").read_text()) | change
        path = tmp_path / "job.json"
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
        return path

    return write


def test_decides_in_a_new_process_without_a_word_on_stderr(judge_registry, tmp_path):
    command = [sys.executable, "-W", "error::UserWarning", "-m", "runtime.decide", str(EXAMPLES / "job.json"), "--json"]
    command += ["--state", str(EXAMPLES / "state.json"), "--tracking-uri", judge_registry.tracking_uri]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    answer = json.loads(done.stdout)
    assert answer["decision"] in ("hold", "run")
    assert answer["policy"]["name"] == "lookahead"
    assert answer["policy"]["verified"] is True
    assert answer["policy"]["gates"][0] == "stand_in: nothing was learned"
    assert len(answer["alternatives"]) == 9
    assert "workload-forecaster: nothing was promoted yet" in answer["notices"]


def test_text_answer_names_choice_reasons_and_every_alternative(judge_registry, capsys):
    status, out, _ = run(capsys, EXAMPLES / "job-kubernetes.json", "--tracking-uri", judge_registry.tracking_uri)
    assert status == 0
    lines = out.splitlines()
    assert lines[0].startswith("search/embed-corpus at 2026-02-10T08:00:00Z: ")
    assert any(line.startswith("  because least expected objective of 10 allowed choices") for line in lines)
    assert "USD/kWh now" in out
    assert sum(line.startswith(("   run in ", "-> run in ")) and "% power" in line for line in lines) == 9
    assert "note: no --state given" in out


def state():
    return read_state(EXAMPLES / "state.json")


def decision_for(policy=JUDGES["lookahead"], **change):
    job = parse_job(json.loads((EXAMPLES / "job.json").read_text()) | change)
    seen = state()
    return decide(seen.snapshot(job, seen.cluster), job.job_id, policy, RewardSpec())


def test_figures_add_up_to_the_objective():
    reward = RewardSpec()
    decision = decision_for()
    for candidate in (decision.chosen, *decision.alternatives):
        margin = 1.0 + JUDGES["lookahead"].settings.hold_margin if candidate.verb == "hold" else 1.0
        total = (
            reward.w_cost * candidate.cost_usd + reward.w_carbon * reward.carbon_usd_per_kg * candidate.carbon_kg + candidate.penalty_usd
        )
        assert candidate.objective_usd == pytest.approx(margin * total, rel=1e-9)
        assert candidate.finish > candidate.start
    best = min((decision.chosen, *decision.alternatives), key=lambda candidate: candidate.objective_usd)
    assert decision.chosen == best


def test_the_hold_is_priced_by_the_forecast_that_prices_the_runs():
    job = read_job(EXAMPLES / "job.json")
    seen = state()
    simulator = restore(seen.snapshot(job, seen.cluster), JUDGES["lookahead"].settings, RewardSpec())
    simulator.observe()
    simulator.step(np.array([1]))
    simulator.observe()
    world, now = simulator.world, simulator.state
    index = world.job_ids[0].index(job.job_id)
    assert now.asking[0] == index
    for action in np.flatnonzero(now.mask[0, 1:]) + 1:
        pool, level = divmod(int(action) - 1, 3)
        grid, site = world.grid, int(world.static.pool_site[pool])
        begin, end = int(now.expected_start_s[0, action]), int(now.expected_end_s[0, action])
        kwh = charged_kw(simulator, index, pool, level) * forecast_integral(simulator, grid.pue[0, site], begin, end)
        assert kwh == pytest.approx(now.expected_kwh[0, action], rel=1e-9)


def test_level_is_left_out_where_it_would_exceed_max_watts():
    decision = decision_for(max_watts=300)
    excluded = [candidate for candidate in decision.alternatives if not candidate.allowed]
    assert excluded
    assert all("above max_watts" in candidate.why_not for candidate in excluded)
    runs = [candidate for candidate in (decision.chosen, *decision.alternatives) if candidate.verb == "run" and candidate.allowed]
    assert runs


def test_a_class_that_cannot_wait_is_not_held():
    decision = decision_for(workload_class="realtime_inference")
    assert decision.chosen.verb == "run"
    hold = next(candidate for candidate in decision.alternatives if candidate.verb == "hold")
    assert hold.why_not == "its class is not deferrable"


def test_without_room_the_job_waits_and_says_why():
    decision = decision_for(gpus=4, workers=4, max_watts=None, workload_class="realtime_inference")
    assert decision.blocked
    assert decision.chosen.verb == "hold"
    assert all("no room" in candidate.why_not or "too small" in candidate.why_not for candidate in decision.alternatives)


def test_jobs_that_come_first_are_decided_first():
    assert decision_for().ahead[0].startswith("notebook-ben: run in ")
    assert decision_for(priority=5).ahead == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"max_watts": 10}, "max_watts 10 is impossible: at the lowest power level its 2 GPUs draw"),
        ({"max_watts": "abc"}, "max_watts 'abc' is not a plain number"),
        ({"gpus": 64}, "1 workers of 64 GPUs fit no pool even when empty"),
        ({"gpus": 2, "workers": 50}, "50 workers of 2 GPUs fit no pool"),
        ({"gpu_model": "B200"}, "no pool has the GPU model that it asks for; there are A40, V100"),
        ({"workload_class": "mining"}, "unknown workload class"),
        ({"gpus": None}, "gpus missing"),
    ],
)
def test_impossible_jobs_are_refused_not_run(judge_registry, job_file, capsys, change, reason):
    status, out, err = run(capsys, job_file(**change), "--tracking-uri", judge_registry.tracking_uri, "--fallback")
    assert status == EXIT_REFUSED
    assert out == ""
    assert err.startswith("refused: ")
    assert reason in err


def test_refusal_in_json_has_no_decision(judge_registry, job_file, capsys):
    status, out, _ = run(capsys, job_file(max_watts=-1), "--json", "--tracking-uri", judge_registry.tracking_uri)
    assert status == EXIT_REFUSED
    assert json.loads(out) == {"decision": None, "error": "refused", "reason": "max_watts -1 is not above 0"}


def test_unusable_state_is_one_error(judge_registry, tmp_path, capsys):
    (tmp_path / "state.json").write_text('{"time": ')
    status, out, err = run(capsys, EXAMPLES / "job.json", "--state", tmp_path / "state.json", "--tracking-uri", judge_registry.tracking_uri)
    assert (status, out) == (EXIT_INPUT, "")
    assert err.count("\n") == 1
    assert "is not JSON" in err


def test_no_registry_no_decision_unless_the_fallback_is_asked_for(tmp_path, capsys):
    uri = f"sqlite:///{tmp_path}/none.db"
    status, out, err = run(capsys, EXAMPLES / "job.json", "--tracking-uri", uri)
    assert (status, out) == (EXIT_UNVERIFIED, "")
    assert "no model registry" in err
    status, out, _ = run(capsys, EXAMPLES / "job.json", "--tracking-uri", uri, "--fallback")
    assert status == 0
    assert "not a promoted model" in out
    assert "FALLBACK: the judge 'planner' decides" in out


@pytest.fixture
def own_registry(tmp_path, publish, empty_database):
    shutil.copy(empty_database, tmp_path / "mlflow.db")
    tracking = open_tracking(f"sqlite:///{tmp_path}/mlflow.db")
    publish(tracking, tmp_path / "made", "lookahead", judge_weights("lookahead"))
    return tracking


def test_tampered_policy_gives_no_decision(own_registry, capsys):
    location = own_registry.client.get_model_version_by_alias(NAME, "champion")
    uri = own_registry.client.get_model_version_download_uri(NAME, location.version)
    weights = Path(uri.removeprefix("file://")) / "artifacts" / "package" / "weights" / "judge.json"
    weights.write_text(weights.read_text().replace("lookahead", "k8s_default"))
    status, out, err = run(capsys, EXAMPLES / "job.json", "--tracking-uri", own_registry.tracking_uri)
    assert (status, out) == (EXIT_UNVERIFIED, "")
    assert "weights/judge.json was changed; no decision is made from it" in err
    status, out, _ = run(capsys, EXAMPLES / "job.json", "--tracking-uri", own_registry.tracking_uri, "--fallback")
    assert status == 0
    assert "weights/judge.json was changed" in out


def test_promoted_agent_decides_as_before_it_was_packaged(agent, own_registry, publish, tmp_path, capsys):
    original = agent()
    publish(own_registry, tmp_path / "agent", "agent", original.save)
    loaded, manifest = load_policy(tracking_uri=own_registry.tracking_uri)
    assert manifest.name == "agent"
    layout = ObservationLayout(3, 3)
    rows = np.random.default_rng(1).normal(0, 1, (64, layout.size)).astype(np.float32)
    rows[:, ::N_CANDIDATE_FEATURES] = 1.0
    np.testing.assert_array_equal(loaded.act(rows, layout), original.act(rows, layout))
    status, out, _ = run(capsys, EXAMPLES / "job.json", "--json", "--tracking-uri", own_registry.tracking_uri)
    assert status == 0
    assert json.loads(out)["policy"]["name"] == "agent"
    assert json.loads(out)["chosen"]["action"] == decision_for(original).chosen.action
    with quiet():
        import mlflow.pyfunc

        version = own_registry.client.get_model_version_by_alias(NAME, "champion").version
        served = mlflow.pyfunc.load_model(
            own_registry.client.get_model_version_download_uri(NAME, version),
            model_config={"trust_folder": str(trust_folder(own_registry.tracking_uri))},
        )
        np.testing.assert_array_equal(served.predict(rows), original.act(rows, layout))


def test_a_packaged_judge_keeps_the_settings_it_was_judged_with(own_registry, publish, tmp_path):
    settings = replace(JUDGES["lookahead"].settings, hold_s=1234, hold_margin=0.5)
    publish(own_registry, tmp_path / "judge", "lookahead", judge_weights("lookahead", settings))
    loaded, _ = load_policy(tracking_uri=own_registry.tracking_uri)
    assert loaded.settings == settings
    assert loaded.chooser == JUDGES["lookahead"].chooser


def test_a_policy_that_knows_prices_to_come_never_serves(own_registry, publish, tmp_path):
    foresighted = replace(JUDGES["planner"].settings, price_forecast="perfect")
    publish(own_registry, tmp_path / "judge", "planner", judge_weights("planner", foresighted))
    with pytest.raises(VerificationError, match="prices that are yet to come"):
        load_policy(tracking_uri=own_registry.tracking_uri)
