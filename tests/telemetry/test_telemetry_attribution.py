"""Attribution: exact where the truth is known, conserving always, and honest about what it cannot know."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from attribution_world import GPU_IDLE_W, START, STEP_S, Run, World
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.accounting import attribute_node
from telemetry.attribution import ROW_COLUMNS, Attribution, AttributionRules, attribute
from telemetry.energy import EnergyRules, Grid
from telemetry.errors import InputError
from telemetry.owners import jobs_of_pods

MEAN = EnergyRules(gauge="mean", max_gap_s=90.0)


def attributed(
    world: World, freq: str = "5min", samples: pd.DataFrame | None = None, jobs: pd.DataFrame | None = None, **rules
) -> Attribution:
    grid = Grid.of(START, START + pd.Timedelta(minutes=world.minutes), freq)
    return attribute(
        world.samples() if samples is None else samples, world.jobs() if jobs is None else jobs, grid, MEAN, AttributionRules(**rules)
    )


def by_job(found: Attribution) -> dict[str, float]:
    rows = found.rows[found.rows["kind"] == "job"]
    return rows.groupby("job_id", observed=True)["energy_j"].sum().to_dict()


def kinds(found: Attribution) -> dict[str, float]:
    return found.rows.groupby("kind", observed=True)["energy_j"].sum().to_dict()


def conserved(found: Attribution) -> None:
    rows = found.rows
    node = pd.Index(found.nodes).get_indexer(rows["node"])
    t = found.grid.starts.get_indexer(rows["interval_start"])
    summed = np.zeros_like(found.node_j)
    np.add.at(summed, (node, t), rows["energy_j"].to_numpy())
    np.testing.assert_allclose(summed, found.node_j, rtol=1e-9, atol=1e-6)
    assert (rows["energy_j"] > 0).all()


def exact(world: World, freq: str = "5min", **rules) -> Attribution:
    found = attributed(world, freq, **rules)
    conserved(found)
    assert by_job(found) == pytest.approx(world.true_j(), rel=1e-9)
    assert kinds(found).get("unattributed", 0.0) == 0.0
    total = sum(world.node_w(node).sum() for node in world.nodes) * STEP_S
    assert found.rows["energy_j"].sum() == pytest.approx(total, rel=1e-9)
    return found


WHOLE = [Run("a", "n0", 0, 30, 120), Run("b", "n0", 1, 40, 200, use=0.5), Run("c", "n0", 0, 130, 180, use=0.3)]


@pytest.mark.parametrize("freq", ["5min", "7min", "1h"])
def test_whole_boards_with_labels_are_exact(freq):
    exact(World({"n0": 2}, WHOLE), freq)


def test_remainders_are_what_nobody_used():
    world = World({"n0": 2}, WHOLE)
    found = exact(world)
    free = sum(2 * world.minutes - sum(r.end - r.begin for r in WHOLE) for _ in range(1)) * STEP_S
    assert kinds(found)["idle"] == pytest.approx(free * (GPU_IDLE_W + 180.0 / 2), rel=1e-9)
    assert "overhead" not in kinds(found)


def test_lost_labels_are_repaired_from_the_span_of_the_job():
    bare = {("n0", 0, m) for m in range(50, 90)} | {("n0", 1, m) for m in range(40, 60)}
    found = exact(World({"n0": 2}, WHOLE, bare=bare))
    assert found.hours["busy without a label"] == pytest.approx(1.0)
    assert found.hours["repaired or shared"] == pytest.approx(1.0)


def test_a_job_without_any_label_is_repaired_when_one_board_fits():
    bare = {("n0", 0, m) for m in range(30, 120)}
    found = exact(World({"n0": 2}, WHOLE, bare=bare))
    assert found.counts["jobs repaired: one place fits"] == 1


def test_two_jobs_that_may_be_on_either_board_stay_unattributed_and_are_counted():
    runs = [Run("a", "n0", 0, 60, 120), Run("b", "n0", 1, 60, 120)]
    world = World({"n0": 2}, runs, bare={("n0", g, m) for g in (0, 1) for m in range(240)})
    found = attributed(world)
    conserved(found)
    assert by_job(found) == {}
    assert kinds(found)["unattributed"] == pytest.approx(sum(world.true_j().values()), rel=1e-9)
    assert found.counts["jobs ambiguous: several places or none fit"] == 2


def test_pods_that_take_turns_on_a_board_are_split_by_their_own_utilisation():
    exact(World({"n0": 2}, [Run("a", "n0", 0, 30, 120, use=0.6, part=0.5), Run("b", "n0", 0, 30, 120, use=0.2, part=0.5)]))


def test_mig_slices_share_idle_by_slice_and_active_by_use():
    runs = [Run("a", "n0", 0, 30, 120, use=0.4, part=0.5, slice=1), Run("b", "n0", 0, 60, 200, use=0.1, part=0.5, slice=2)]
    exact(World({"n0": 2}, runs))


def test_mig_shares_can_be_told():
    runs = [Run("a", "n0", 0, 30, 120, use=0.4, part=0.5, slice=1), Run("b", "n0", 0, 60, 200, use=0.1, part=0.5, slice=2)]
    even, told = (attributed(World({"n0": 2}, runs), mig_shares=m) for m in ({}, {"n0/gpu0/mig1": 0.75, "n0/gpu0/mig2": 0.25}))
    assert by_job(told)["a"] > by_job(even)["a"]
    conserved(told)


def test_slurm_jobs_are_found_by_node_and_load():
    runs = [Run("1", "n0", 0, 30, 120), Run("2", "n0", 1, 60, 100, use=0.5), Run("3", "n0", 0, 130, 180), Run("3", "n0", 1, 130, 180)]
    found = exact(World({"n0": 2}, runs, named=dict.fromkeys("123", "n0")))
    assert found.counts["worker pods, whose jobs are those of the job table"] == 1
    assert found.counts["jobs repaired: one place fits"] == 3


def test_jobs_that_fit_on_several_boards_are_put_where_the_load_steps_with_them():
    runs = [Run("1", "n0", 0, 60, 120, use=0.9), Run("2", "n0", 1, 50, 110, use=0.4)]
    found = exact(World({"n0": 3}, runs, named=dict.fromkeys("12", "n0")))
    assert found.counts["jobs repaired: several places fit, the load steps with them in one"] >= 1


def test_what_a_job_misses_is_shared_by_its_nodes_not_where_its_boards_are_known():
    runs = [Run("a", "n0", 0, 60, 120), Run("a", "n1", 0, 60, 120), Run("b", "n1", 1, 60, 120)]
    world = World({"n0": 2, "n1": 2}, runs, bare={("n1", g, m) for g in (0, 1) for m in range(240)})
    jobs = world.jobs().assign(nodes=["n0 n1", "n1"], gpus=1.0, workers=[2.0, 1.0])
    found = attributed(world, jobs=jobs)
    conserved(found)
    assert by_job(found) == pytest.approx(world.true_j(), rel=1e-9)  # the same use, so equal shares of n1 are right


def test_jobs_of_one_node_that_cannot_be_told_apart_share_it_as_the_simulator_does():
    runs = [Run("1", "n0", 0, 60, 120, use=0.9), Run("2", "n0", 1, 60, 120, use=0.3)]
    world = World({"n0": 4}, runs, named=dict.fromkeys("12", "n0"))
    found = attributed(world)
    conserved(found)
    assert found.counts["jobs shared: the node is known, the GPU is not"] == 2
    hour = STEP_S * 60 / 3.6e6
    idle_w = 180.0 + 4 * GPU_IDLE_W
    shares = attribute_node((idle_w + 2 * 20.0 + 200.0 * 1.2) * hour, idle_w * hour, np.array([1.0, 1.0]), 4)
    assert [by_job(found)[job] / 3.6e6 for job in "12"] == pytest.approx(shares.jobs.tolist(), rel=1e-9)


@pytest.mark.parametrize("gpus", [1, 4])
def test_a_node_with_one_job_agrees_with_the_simulators_rule(gpus):
    world = World({"n0": gpus}, [Run("a", "n0", 0, 60, 120)])
    found = attributed(world)
    hour = STEP_S * 60 / 3.6e6
    idle_w = 180.0 + gpus * GPU_IDLE_W
    share = attribute_node((idle_w + 20.0 + 180.0) * hour, idle_w * hour, np.array([1.0]), gpus)
    assert by_job(found)["a"] / 3.6e6 == pytest.approx(share.jobs[0], rel=1e-9)


def test_counter_restarts_and_gaps_are_exact():
    silent = {("n0", 0, m) for m in range(70, 85)}
    exact(World({"n0": 2}, WHOLE, counters={("n0", 0): {55, 150}}, silent=silent))


def test_a_gap_of_the_boards_goes_to_the_node_and_nothing_is_lost():
    silent = {("n0", 0, m) for m in range(60, 90)}
    found = exact(World({"n0": 1}, [Run("a", "n0", 0, 30, 120)], silent=silent))
    layers = found.rows[found.rows["kind"] == "job"].groupby("source_layer", observed=True)["energy_j"].sum()
    assert layers["gpu"] == pytest.approx(STEP_S * 60 * (50.0 + 180.0) + STEP_S * 0, rel=1e-9)


def test_without_the_nodes_reading_the_parts_are_the_total():
    world = World({"n0": 2}, WHOLE)
    samples = world.samples()
    found = attributed(world, samples=samples[samples["device"] != ""])
    conserved(found)
    assert set(found.rows["source_layer"]) == {"gpu"}
    assert found.node_j.sum() == pytest.approx(sum(world.board_w("n0", g).sum() for g in (0, 1)) * STEP_S, rel=1e-9)


def test_a_node_that_only_its_own_meter_reads_is_split_by_the_job_table():
    runs = [Run("1", "n0", 0, 30, 120, use=0.5), Run("2", "n0", 1, 60, 120, use=0.5)]
    world = World({"n0": 2}, runs, named=dict.fromkeys("12", "n0"))
    samples = world.samples()
    found = attributed(world, samples=samples[samples["device"] == ""])
    conserved(found)
    assert set(found.rows["source_layer"]) == {"node"}
    assert by_job(found) == pytest.approx(world.true_j(), rel=1e-9)


def test_parts_beyond_the_node_are_scaled_to_it_and_counted():
    world = World({"n0": 2}, WHOLE)
    samples = world.samples()
    samples.loc[samples["device"] == "", "value"] = 90.0
    found = attributed(world, samples=samples)
    conserved(found)
    assert found.node_j.sum() == pytest.approx(90.0 * STEP_S * world.minutes)
    assert found.counts["node intervals whose parts exceed the node; parts scaled"] == len(found.grid)


def test_a_busy_board_without_a_pod_or_job_is_unattributed_and_a_pod_without_a_job_keeps_its_name():
    world = World({"n0": 2}, WHOLE, bare={("n0", 0, m) for m in range(240)})
    found = attributed(world, jobs=world.jobs().iloc[:0])
    conserved(found)
    truth = world.true_j()
    assert kinds(found)["unattributed"] == pytest.approx(truth["a"] + truth["c"], rel=1e-9)
    pods = found.rows[found.rows["kind"] == "job"].groupby("pod_uid", observed=True)["energy_j"].sum()
    assert pods.to_dict() == pytest.approx({"b-a1b2c": truth["b"]}, rel=1e-9)
    assert found.counts["pods without a job"] == 1


def test_overhead_can_be_kept_apart():
    world = World({"n0": 2}, WHOLE)
    found = attributed(world, overhead="kept")
    conserved(found)
    host = sum(world.node_w("n0") - world.board_w("n0", 0) - world.board_w("n0", 1)) * STEP_S
    assert kinds(found)["overhead"] == pytest.approx(host, rel=1e-9)


def test_jobs_that_ask_for_more_than_the_node_has_get_their_part_and_are_counted():
    world = World({"n0": 1}, [Run("1", "n0", 0, 60, 120)], named={"1": "n0"})
    jobs = pd.concat([world.jobs().assign(job_id=name) for name in "123"], ignore_index=True)
    found = attributed(world, jobs=jobs)
    conserved(found)
    assert found.counts["node intervals with more GPUs asked for than there are"] == 12
    assert sum(by_job(found).values()) == pytest.approx(world.true_j()["1"], rel=1e-9)


def test_jobs_without_an_end_run_on_and_unknown_nodes_are_counted():
    world = World({"n0": 1}, [Run("1", "n0", 0, 60, 240)], named={"1": "n0"})
    jobs = world.jobs().assign(end_time=pd.NaT, duration_s=np.nan, state=None)
    far = jobs.assign(job_id="2", nodes="n99")
    found = attributed(world, jobs=pd.concat([jobs, far], ignore_index=True))
    assert by_job(found) == pytest.approx({"1": world.true_j()["1"]}, rel=1e-9)
    assert (found.counts["jobs without an end"], found.counts["nodes of jobs that no sample knows"]) == (2, 1)


def test_slices_that_repeat_their_boards_watts_count_once():
    world = World({"n0": 1}, [Run("a", "n0", 0, 30, 120)])
    samples = world.samples()
    power = samples[(samples["device"] == "gpu0") & (samples["metric"] == "hw.power")]
    rest = samples.drop(power.index)
    twice = pd.concat([rest, power.assign(device="gpu0/mig1"), power.assign(device="gpu0/mig2")], ignore_index=True)
    found = attributed(world, samples=twice)
    gpu = found.rows.loc[found.rows["source_layer"] == "gpu", "energy_j"].sum()
    assert gpu == pytest.approx(world.board_w("n0", 0).sum() * STEP_S, rel=1e-9)


def test_no_power_in_the_window_is_refused():
    world = World({"n0": 1}, [Run("a", "n0", 0, 30, 120)])
    with pytest.raises(InputError, match="no power of any node"):
        attributed(world, samples=world.samples().iloc[:0])


@pytest.mark.parametrize(
    ("key", "value"), [("overhead", "gone"), ("busy_utilization", 2.0), ("busy_watts_factor", 0.5), ("mig_shares", {"x": 0.0})]
)
def test_wrong_rules_are_named(key, value):
    with pytest.raises(InputError, match=f"attribution.{key}"):
        AttributionRules(**{key: value})


def test_pods_find_their_jobs():
    jobs = np.array(["train-1", "81", "score-2"])
    pods = np.array(["train-1-ab3de", "train-1-4-ab3de", "81", "score-2", "other-abcde", "train-1-0"])
    assert jobs_of_pods(pods, jobs).tolist() == [0, 0, 1, 2, -1, 0]


def test_columns_are_those_of_the_contract():
    assert tuple(attributed(World({"n0": 2}, WHOLE)).rows.columns) == ROW_COLUMNS


@st.composite
def worlds(draw) -> World:
    nodes = {f"n{i}": draw(st.integers(1, 3)) for i in range(draw(st.integers(1, 3)))}
    runs = []
    for i in range(draw(st.integers(0, 7))):
        node = draw(st.sampled_from(sorted(nodes)))
        begin = draw(st.integers(0, 110))
        runs.append(
            Run(
                f"job{i}", node, draw(st.integers(0, nodes[node] - 1)), begin, draw(st.integers(begin + 1, 120)),
                use=draw(st.sampled_from([0.0, 0.2, 0.9])), part=draw(st.sampled_from([0.25, 0.5, 1.0])),
            )
        )  # fmt: skip
    cells = [(node, gpu, m) for node, gpus in nodes.items() for gpu in range(gpus) for m in range(120)]
    flawed = st.sets(st.sampled_from(cells), max_size=200)
    named = {run.job: run.node for run in runs if draw(st.booleans())}
    return World(nodes, runs, 120, named, draw(flawed), draw(flawed))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(world=worlds(), freq=st.sampled_from(["1min", "7min", "1h"]), overhead=st.sampled_from(["shared", "kept"]))
def test_rows_sum_to_the_node_whatever_is_flawed(world, freq, overhead):
    conserved(attributed(world, freq, overhead=overhead))
