"""The search itself, on a cart that can be pushed along a rail: its physics is one line."""

import math

import pytest
import torch

from penspin_style.algo.search.beam import Beams, BeamSearch
from penspin_style.algo.search.config import SearchConfig
from penspin_style.algo.search.plans import NoisyWorldError, Outcome, PlanWorld
from penspin_style.algo.search.trajectory import ReplayError, Search, replay
from penspin_style.env.world import World
from penspin_style.storage import DamagedError
from tests.support import rail, toy

METHODS = ("beam", "predictive_sampling", "mppi")
TOTAL = 36


def plan_world(kind=toy, search=None, seed=0, **config):
    search = {"beams": 3, "plans": 16, "horizon": 8, "hold": 2, "keep": 4, "knot": 4} | (
        search or {}
    )
    cfg = SearchConfig(**search)
    task = kind.TASK(kind.Config(**{"randomize": False, **config}))
    return PlanWorld(World(task, cfg.num_envs, seed=seed, nthread=1), cfg)


def single(kind=toy, **config):
    task = kind.TASK(kind.Config(**{"randomize": False, **config}))
    return World(task, 1, nthread=1)


def found(method="beam", index=5, total=TOTAL, **search):
    search = Search.begin(plan_world(search={"method": method, **search}), 7, index, total)
    while not search.is_finished:
        search.advance()
    return search


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# What plans lead to.


def test_a_plan_is_worth_its_rewards_less_its_costs_by_the_second(monkeypatch):
    monkeypatch.setattr(
        toy.TASK,
        "search_cost",
        lambda self, sim, *, still: {"speed": sim.data.qvel[:, 0].abs().float() * (1 + still)},
    )
    worlds = plan_world(search={"cost": {"speed": 2.0}, "terminal": 3.0, "terminal_steps": 1})
    start = worlds.alike(0)
    actions = torch.zeros(10, 48, 1)
    actions[0, 1] = 0.5  # one plan pushes once
    outcome = worlds.roll(start, torch.zeros(48, dtype=torch.long), actions)
    x, v = start["sim"][0, 1].item(), 0.0
    value = gain = 0.0
    for t in range(10):
        x, v = toy.substep(x, v, 0.5 if t == 0 else 0.0)
        reward = 0.05 * (1.0 - abs(x) - (0.1 * 0.25 if t == 0 else 0.0))
        gain += reward if t < 4 else 0.0
        value += reward - 0.05 * 2.0 * abs(v) * (4.0 if t == 9 else 1.0) * (2.0 if t >= 8 else 1.0)
    assert outcome.value[1].item() == pytest.approx(value, abs=1e-6)
    assert outcome.gain[1].item() == pytest.approx(gain, abs=1e-6)
    assert outcome.survived.all()


def test_a_plan_that_terminates_while_it_holds_is_worth_nothing_and_stands_still_from_then_on():
    worlds = plan_world(rail, end=0.3, start=0.0)
    start = worlds.alike(0)
    actions = torch.zeros(10, 48, 1)
    actions[:2, 1], actions[:8, 2] = 1.0, 1.0  # targets of 0.25 m, which holds, and of 1 m
    outcome = worlds.roll(start, torch.zeros(48, dtype=torch.long), actions)
    assert outcome.survived[:3].tolist() == [True, True, False]
    assert outcome.value[2] == -torch.inf
    assert math.isfinite(outcome.value[1])
    time = worlds.sim.data.time
    assert time[1] == pytest.approx(0.5) and time[2] < 0.45


def test_progress_that_a_task_measures_counts_as_reward():
    worlds = plan_world(rail, search={"reward": {}, "progress": {"way": 3.0}})
    start = worlds.alike(0)
    actions = torch.zeros(10, 48, 1)
    actions[:2, 1] = 1.0
    outcome = worlds.roll(start, torch.zeros(48, dtype=torch.long), actions)
    x = v = way = 0.0
    for t in range(10):
        x, v = rail.substeps(x, v, 0.25 if t else 0.125, 5)
        way += abs(v) * 0.05
    assert outcome.value[:2].tolist() == pytest.approx([0.0, 3.0 * way], abs=1e-5)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"reward": {"nera": 1.0}}, r"search.reward.nera: the task has no such term; did you mean"),
        ({"cost": {"tilt": 1.0}}, r"search.cost.tilt: the task has no such term; it has none"),
        ({"progress": {"turns": 1.0}}, r"search.progress.turns"),
    ],
)
def test_a_weight_of_a_term_that_there_is_not_is_named(search, message):
    with pytest.raises(ValueError, match=message):
        plan_world(search=search)


def test_a_world_that_draws_noise_within_a_step_is_refused():
    with pytest.raises(NoisyWorldError, match="Cart that begin alike differ"):
        plan_world(randomize=True).alike(0)


# The planners.


@pytest.mark.parametrize("method", METHODS)
def test_a_search_brings_the_cart_to_the_middle_and_keeps_it_there(method):
    search = found(method)
    trajectory = search.replayed(single())
    first, last = trajectory.state[[0, -1], 1].abs()
    assert first > 0.3 and last < 0.06
    still = replay(single(), search.start, torch.zeros(TOTAL, 1))
    assert trajectory.card["score"]["return"] > still.card["score"]["return"] + 2.0
    assert trajectory.card["score"]["success_at_end"] == 1.0


def test_a_search_ends_at_a_success_where_it_is_told_to():
    search = found(stop_at_success=True)
    assert search.beams.steps < TOTAL
    assert search.replayed(single()).card["score"]["success_at_end"] == 1.0


@pytest.mark.parametrize("method", METHODS)
def test_what_a_search_saw_is_replayed_bit_for_bit_in_a_world_of_its_own(method):
    search = found(method)
    trajectory = search.replayed(single())
    assert torch.equal(trajectory.state[-1], search.beams.state["sim"][search.best])
    assert torch.equal(trajectory.kept["memory/action"][-1], trajectory.action[-1])
    assert len(trajectory.state) == trajectory.steps + 1 == TOTAL + 1


def test_a_trajectory_has_the_length_that_was_asked_for_also_where_the_last_advance_went_beyond():
    search = found(total=6)
    assert search.beams.steps == 8
    trajectory = search.replayed(single())
    assert (trajectory.steps, len(trajectory.state)) == (6, 7)
    assert torch.equal(trajectory.action, search.beams.actions[search.best][:6])


@pytest.mark.parametrize("total", [6, 8])
def test_a_replay_that_ends_elsewhere_is_refused(total):
    search = found(total=total)
    search.beams.state["sim"][search.best, 1] += 1e-12
    with pytest.raises(ReplayError, match="a replay ends 1e-12 from the state"):
        search.replayed(single())


def test_seed_and_index_choose_the_start_and_determine_the_search():
    a, b, c = found(total=8), found(total=8), found(total=8, index=1)
    assert same(a.beams, b.beams)
    assert a.start["sim"][0, 1] != c.start["sim"][0, 1]


# Choosing.


def outcome_of(places, survived=None):
    """What plans led to that ended at these places of the cart."""
    n = len(places)
    state = torch.zeros(n, 3, dtype=torch.float64)
    state[:, 1] = torch.tensor(places)
    alive = torch.ones(n, dtype=torch.bool) if survived is None else survived
    return Outcome(torch.zeros(n), torch.zeros(n), alive, ~alive, {"sim": state})


def test_kept_states_are_the_best_that_are_apart():
    search = BeamSearch(plan_world(search={"diversity": 0.1, "per_parent": 9}))
    value = torch.tensor([1.0, 4.0, 3.0, 2.0, -torch.inf])
    outcome = outcome_of([0.5, 0.0, 0.05, 0.2, 0.9])
    chosen = search.choose(value, torch.zeros(5, dtype=torch.long), outcome, 1)
    assert chosen.tolist() == [1, 3, 0]  # the third is too near the second, the last one died


def test_no_beam_has_more_children_than_allowed_where_there_are_more_than_two():
    search = BeamSearch(plan_world(search={"diversity": 0.0, "per_parent": 1}))
    value, owner = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([0, 0, 1, 2])
    outcome = outcome_of([0.0, 0.1, 0.2, 0.3])
    assert search.choose(value, owner, outcome, 3).tolist() == [0, 2, 3]
    assert search.choose(value, owner.clamp(max=1), outcome, 2).tolist() == [0, 1, 2]


def test_the_noise_grows_where_most_plans_survive_and_shrinks_where_few_do():
    search = BeamSearch(plan_world(search={"scale_range": [0.5, 1.2]}))
    beams = search.begin({"sim": torch.zeros(1, 3)})
    beams = Beams(*(getattr(beams, name) for name in ("state", "plan")), *([torch.ones(3)] * 4))
    owner = torch.arange(3).repeat_interleave(10)
    survived = torch.zeros(30, dtype=torch.bool)
    survived[:3], survived[10:15], survived[20:27] = True, True, True  # 30, 50 and 70 %
    assert search._adapted(beams, owner, survived).tolist() == pytest.approx([0.85, 1.0, 1.15])
    assert search.survival == pytest.approx(0.5)
    beams.scale = torch.tensor([0.55, 1.0, 1.15])
    assert search._adapted(beams, owner, survived).tolist() == pytest.approx([0.5, 1.0, 1.2])


# Dead ends.


def test_where_no_plan_survives_the_search_goes_back_and_tries_again(monkeypatch):
    search = Search.begin(plan_world(search={"patience": 2, "retries": 1}), 0, 0, TOTAL)
    for _ in range(4):
        search.advance()
    assert search.beams.steps == 16
    monkeypatch.setattr(search.planner, "advance", lambda beams, rng: None)
    search.advance()
    assert (search.beams.steps, search.retries, search.is_finished) == (8, 1, False)
    search.advance()
    assert search.died and search.is_finished
    card = search.replayed(single()).card
    assert card["lost"] and not card["terminated"]


def test_a_search_that_dies_at_once_has_no_steps_and_still_a_card():
    worlds = plan_world(rail, search={"retries": 0}, end=-1.0)  # terminated wherever it is
    search = Search.begin(worlds, 0, 0, TOTAL)
    search.advance()
    assert search.died
    trajectory = search.replayed(single(rail, end=-1.0))
    assert (trajectory.steps, len(trajectory.state)) == (0, 1)
    assert trajectory.card["score"]["success_at_end"] == 0.0


# Resuming.


@pytest.mark.parametrize("method", METHODS)
def test_a_search_that_is_resumed_goes_on_as_if_it_had_not_ended(method, tmp_path):
    def begin():
        return Search.begin(plan_world(search={"method": method}), 7, 0, TOTAL)

    straight, first, second = begin(), begin(), begin()
    for _ in range(5):
        straight.advance()
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "x")
    second.load(tmp_path / "x")
    assert second.cpu_seconds == first.cpu_seconds
    for _ in range(2):
        second.advance()
    assert same(straight.beams, second.beams)
    assert [b.steps for b in second.history] == [b.steps for b in straight.history]


@pytest.mark.parametrize("damage", [b"", b"no tensors at all", None])
def test_a_damaged_checkpoint_is_named_with_the_remedy(damage, tmp_path):
    search = Search.begin(plan_world(), 7, 0, TOTAL)
    search.save(tmp_path / "000.partial")
    whole = (tmp_path / "000.partial").read_bytes()
    (tmp_path / "000.partial").write_bytes(whole[:-9] if damage is None else damage)
    with pytest.raises(DamagedError, match=r"000.partial is .*delete it to begin again"):
        search.load(tmp_path / "000.partial")
