"""The compiled simulator and the plain-Python reference agree event for event, question for question and total for total.

Clusters, work, outages, services, prices and answers are random; every example is a different small world with its own set of features.
The reference was written from docs/simulator.md and shares no code with the kernel. Windows of one cluster are simulated as one batch.
"""

import collections
import dataclasses
import importlib.util
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from envs.events import EVENT_NAMES
from envs.kernel import Simulator
from envs.state import PolicySettings


def _load(name: str):
    """A module beside this file, by path: another distribution installs a top-level package named tests."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


rw = _load("random_worlds")
ref = rw.ref
WINDOWS, BATCHES, CHUNKS = 8, 126, 14  # 1,008 worlds


def random_batch(seed: int, windows: int = WINDOWS) -> list:
    rng = random.Random(seed)
    return rw.draw_cases(rng, rng.randint(1, 2), rng.randint(1, 3), rng.randint(1, 20), rw.draw_settings(rng), windows)


# ---------------------------------------------------------------- comparing


def compare(cases: list) -> None:
    """All windows of one cluster, stepped together."""
    expected = [rw.run_reference(case) for case in cases]
    chosen = PolicySettings(**dataclasses.asdict(cases[0].settings))
    simulator = Simulator(rw.kernel_world(cases), len(cases), chosen, rw.REWARD, event_log=True)
    simulator.reset(np.arange(len(cases), dtype=np.int64))
    asked = [0] * len(cases)
    while not simulator.done.all():
        actions = np.full(len(cases), -1, dtype=np.int64)
        for b, (result, answers, _) in enumerate(expected):
            if not simulator.done[b]:
                allowed = tuple(int(action) for action in np.flatnonzero(simulator.mask[b]))
                question = (int(simulator.time_s[b]), int(simulator.asking[b]), allowed)
                wanted = result.questions[asked[b]] if asked[b] < len(answers) else None
                where = f"window {b}, question {asked[b]} (time, job, allowed): kernel {question}, reference {wanted}"
                assert question == wanted, f"{where}; {first_difference(simulator.events(b), result.events)}"
                actions[b] = answers[asked[b]]
                asked[b] += 1
        simulator.step(actions)
    totals = simulator.totals()
    for b, (result, answers, _) in enumerate(expected):
        assert not first_difference(totals.events[b], result.events), f"window {b}"
        assert len(totals.events[b]) == len(result.events), f"window {b}: one log goes on"
        assert asked[b] == len(answers), f"window {b}"
        compare_totals(len(cases[b].jobs), totals, b, result)


def first_difference(kernel: np.ndarray, reference: list) -> str:
    """Where the event logs part, as far as both go."""
    for index, (row, wanted) in enumerate(zip(kernel, reference, strict=False)):
        if tuple(int(value) for value in row[:6]) != wanted:
            before = "; ".join(_words(event) for event in reference[max(0, index - 4) : index])
            return f"event {index}: kernel {_words(row)}, reference {_words(wanted)}, after {before}"
    return ""


def _words(event) -> str:
    time, kind, *rest = (int(value) for value in event[:6])
    return " ".join([str(time), EVENT_NAMES[kind], *(f"{name}{value}" for name, value in zip("jpln", rest, strict=True) if value >= 0)])


def compare_totals(n: int, totals, b: int, expected) -> None:
    outcomes = expected.outcomes
    assert int(totals.end_s[b]) == expected.end_s
    for name in ("start_s", "end_s", "pool", "level", "late_start", "missed_deadline", "rejected"):
        assert getattr(totals, f"job_{name}")[b, :n].tolist() == [getattr(o, name) for o in outcomes], f"window {b}: {name}"

    def close(kernel, reference, what: str) -> None:
        np.testing.assert_allclose(kernel, reference, rtol=1e-9, atol=1e-10, err_msg=f"window {b}: {what}")

    for name in ("energy_kwh", "cost_usd", "carbon_kg"):
        close(getattr(totals, name)[b], getattr(expected, f"site_{name}"), f"site {name}")
        close(getattr(totals, f"idle_{name}")[b].sum(axis=-1), getattr(expected, f"idle_{name}"), f"idle {name}")
        close(getattr(totals, f"job_{name}")[b, :n], [getattr(o, name) for o in outcomes], f"job {name}")
    close(totals.job_penalty_usd[b, :n], [o.penalty_usd for o in outcomes], "job penalty")
    close(totals.penalty_usd[b].sum(), sum(o.penalty_usd for o in outcomes), "penalty")
    close(totals.busy_gpu_s[b], expected.busy_gpu_s, "busy GPU seconds")


# ---------------------------------------------------------------- the tests


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_kernel_and_reference_agree(chunk):
    for seed in range(chunk, BATCHES, CHUNKS):
        try:
            compare(random_batch(seed))
        except AssertionError as error:
            raise AssertionError(f"random_batch({seed}): {error}") from error


SETTINGS = st.builds(
    ref.Settings,
    node_rule=st.sampled_from(["best_fit", "least_allocated", "fgd", "pwr_fgd"]),
    sleep_after_s=st.sampled_from([-1, 0, 100, 900]),
    discipline=st.sampled_from(["free", "strict", "easy"]),
    queue_order=st.sampled_from(["priority", "fcfs", "sjf", "f1", "wfp3", "unicep"]),
    hold_s=st.sampled_from([60, 900]),
    review_s=st.sampled_from([0, 300, 700, 1800]),
    pwr_weight=st.sampled_from([0.1, 0.0, 0.5, 1.0]),
    ces_buffer=st.sampled_from([-1, 0, 1]),
    ces_trend=st.sampled_from([0.5, 0.0, 0.25]),
    ces_keep_s=st.sampled_from([7200, 0, 1500]),
)
COUNTS = {"sites": st.integers(1, 2), "pools": st.integers(1, 3), "jobs": st.integers(1, 20), "seed": st.integers(0, 2**32 - 1)}


@settings(max_examples=120, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(chosen=SETTINGS, **COUNTS)
def test_they_agree_in_worlds_that_shrink(chosen, sites, pools, jobs, seed):
    """Few jobs and plain settings first: what fails here comes out small."""
    compare([rw.draw_case(random.Random(seed), sites, pools, jobs, chosen)])


def crowded_batch(seed: int) -> list:
    """Forty jobs on few GPUs: long queues, many blocked jobs, backfilling all the time; paused jobs come back to the queue."""
    order = ("fcfs", "sjf", "priority", "wfp3", "unicep", "f1")[seed % 6]
    discipline = ("easy", "easy", "strict", "easy", "free")[seed % 5]
    chosen = ref.Settings(discipline=discipline, queue_order=order, sleep_after_s=(-1, 100)[seed % 2], review_s=700)
    return rw.draw_cases(random.Random(seed), 1 + seed % 2, 1 + seed % 3 // 2, 40, chosen, WINDOWS, frozenset(["checkpoints"]))


@pytest.mark.parametrize("seed", range(20))
def test_they_agree_under_crowding(seed):
    compare(crowded_batch(seed))


def test_leases_are_not_reviewed_whatever_their_row_says():
    """A lease cannot be paused, moved or changed in level."""
    chosen = ref.Settings(review_s=300, sleep_after_s=100)
    cases = rw.draw_cases(random.Random(1), 1, 2, 20, chosen, WINDOWS, frozenset(["leases"]))
    compare([dataclasses.replace(case, jobs=[dataclasses.replace(job, preemptible=True) for job in case.jobs]) for case in cases])


def test_the_random_worlds_reach_every_rule():
    """The generator is worth nothing if no job is late, interrupted, stranded, or no budget ever binds."""
    seen, questions = collections.Counter(), 0
    events, rejected, features = collections.Counter(), collections.Counter(), collections.Counter()
    for seed in range(0, BATCHES, 2):
        for case in random_batch(seed):
            result, answers, stays = rw.run_reference(case)
            questions += len(answers)
            events.update(EVENT_NAMES[event[1]] for event in result.events)
            rejected.update(outcome.rejected for outcome in result.outcomes)
            features.update([*case.features, "all" if case.features == set(rw.FEATURES) else "some"])
            seen.update(outcome_happenings(case, result))
            seen.update(event_happenings(case, result))
            seen.update(review_happenings(case, result, stays))
    assert set(events) == set(EVENT_NAMES.values())
    assert min(events.values()) > 20, events
    assert set(rejected) == {0, ref.NO_GPU_MODEL, ref.TOO_LARGE, ref.MAX_WATTS, ref.TOO_SLOW, ref.STRANDED}
    assert min(rejected.values()) > 20, rejected
    assert set(features) == {*rw.FEATURES, "all", "some"}
    assert min(features.values()) > 30, features
    assert set(seen) == HAPPENINGS
    assert min(seen.values()) > 5, seen
    assert questions > 1500


HAPPENINGS = {
    "late", "missed", "withdrawn unserved", "withdrawn after an interruption", "cut GPUs", "without GPUs",
    "finished after an interruption", "restarted", "data sent", "level raised", "node lost by two jobs", "wake lost",
    "review offers another pool", "review cannot raise the level", "woken ahead",
}  # fmt: skip


def outcome_happenings(case, result) -> list[str]:
    """What outcomes tell beside rejections."""
    names: list[str] = []
    for job, outcome in zip(case.jobs, result.outcomes, strict=True):
        names += ["late"] * outcome.late_start + ["missed"] * outcome.missed_deadline
        if outcome.withdrawn:
            names.append("withdrawn unserved" if outcome.start_s < 0 else "withdrawn after an interruption")
        if outcome.start_s >= 0:
            names += ["without GPUs"] * (job.gpu_milli == 0)
            names += ["cut GPUs"] * (case.cluster.pools[outcome.pool].mig_slices > 0 and 0 < job.gpu_milli < 1000)
    return names


def event_happenings(case, result) -> list[str]:
    """What the event types alone do not tell."""
    jobs, cluster, names = case.jobs, case.cluster, []
    starts, level_at, interrupts, waking, placing = collections.Counter(), {}, collections.Counter(), set(), False
    for time, kind, j, p, level, node in result.events:
        starts[j] += kind == ref.START
        interrupts[time, node] += kind == ref.INTERRUPT
        if kind in (ref.RUN, ref.MIGRATE) and jobs[j].data_gib > 0 and jobs[j].data_site >= 0:
            names += ["data sent"] * (cluster.pools[p].site != cluster.sites[jobs[j].data_site].name)
        if kind == ref.LEVEL:
            names += ["level raised"] * (level < level_at[j])
        if kind in (ref.RUN, ref.MIGRATE, ref.LEVEL):
            level_at[j] = level
        placing = kind in (ref.RUN, ref.MIGRATE) or (placing and kind == ref.WAKE)  # a gang's wakes follow its row
        if kind == ref.WAKE:
            waking.add(node)
            names += ["woken ahead"] * (not placing)
        if kind == ref.NODE_DOWN:
            names += ["wake lost"] * (node in waking)
        if kind in (ref.WAKE_DONE, ref.NODE_DOWN):
            waking.discard(node)
    names += ["node lost by two jobs" for count in interrupts.values() if count > 1]
    names += ["restarted" for j, count in starts.items() if j >= 0 and count > 1 and jobs[j].restart_s > 0]
    interrupted = {event[2] for event in result.events if event[1] == ref.INTERRUPT}
    return names + ["finished after an interruption" for j in interrupted if result.outcomes[j].end_s >= 0 and not jobs[j].lease]


def review_happenings(case, result, stays: list[int]) -> list[str]:
    names, levels = [], len(case.cluster.level_fractions)
    for (_, _, allowed), stay in zip(result.questions, stays, strict=True):
        if stay >= 0:
            own = [action for action in allowed if action > 0 and (action - 1) // levels == (stay - 1) // levels]
            names += ["review offers another pool"] * (len(own) < len(allowed) - 1)
            names += ["review cannot raise the level"] * ((stay - 1) % levels > 0 and min(own) == stay)
    return names
