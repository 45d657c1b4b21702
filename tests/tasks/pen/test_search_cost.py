"""What a search for gaits is told: natural grasps by yaw, and what it shuns, derived by hand."""

import math
import pathlib

import pytest
import torch

from penspin_style.algo.search.plans import PlanWorld
from penspin_style.algo.search.trajectory import Search
from penspin_style.data.trajectory import read_trajectory
from penspin_style.env.world import World
from penspin_style.train.compose_search import compose_search
from tasks.pen import gait, grasps, search_cost
from tasks.pen.spin import Config, PenSpin

SHIPPED = pathlib.Path(__file__).parents[3] / "outputs" / "pretrained" / "pen_search"
CALM = {"action_noise": [0.0, 0.0], "joint_noise": [0.0, 0.0], "push_probability": 0.0}


def terms(still=False, **changes):
    """Costs of a pen in the middle along x, tips around it, joints as natural there."""
    joints = search_cost.natural_joints(torch.zeros(1))
    given = {
        "pen": torch.tensor([gait.MIDDLE]),
        "axis": torch.tensor([[1.0, 0.0, 0.0]]),
        "size": torch.tensor([[0.01, 0.06, 0.0]]),
        # all touch the pen's side: index and middle on one side, ring and thumb on the other
        "tips": torch.tensor([gait.MIDDLE]).expand(4, 3)
        + torch.tensor([[-0.04, -0.022, 0], [0.0, -0.022, 0], [0.04, 0.022, 0], [0.0, 0.022, 0]]),
        "joints": joints,
        "target": joints,
        "velocity": torch.zeros(1, 3),
        "angvel": torch.zeros(1, 3),
    } | changes
    given["tips"] = given["tips"].reshape(1, 4, 3)
    found = search_cost.cost_terms(still=still, **given)
    return {name: value.item() for name, value in found.items() if abs(value.item()) > 1e-4}


def test_natural_grasps_are_the_published_ones_at_their_yaws_and_lines_between():
    table = grasps.canonical()[:, :16]
    for eighths, row in ((0, 0), (1, 2), (2, 3), (3, 4), (4, 0), (5, 2), (-1, 4)):
        found = search_cost.natural_joints(torch.tensor([eighths * math.pi / 4]))
        torch.testing.assert_close(found[0], table[row], atol=1e-5, rtol=0)
    between = search_cost.natural_joints(torch.tensor([3 * math.pi / 8]))[0]
    torch.testing.assert_close(between, (table[2] + table[3]) / 2, atol=1e-5, rtol=0)


def test_a_pen_held_from_both_sides_where_it_is_wanted_costs_nothing():
    assert terms() == {}


@pytest.mark.parametrize(
    ("changes", "cost"),
    [
        ({"velocity": torch.tensor([[0.1, 0.0, 0.0]])}, {"speed": 1.0}),
        ({"angvel": torch.tensor([[0.0, 0.0, 2.0]])}, {"over_speed": 0.8}),
        ({"angvel": torch.tensor([[0.0, 0.0, 1.1]])}, {}),
        ({"axis": torch.tensor([[0.98869, 0.0, 0.15]])}, {"tilt": 1.0}),
    ],
)
def test_each_cost_is_one_at_its_scale(changes, cost):
    found = {k: v for k, v in terms(**changes).items() if k not in ("gap", "support", "thumb")}
    assert found == pytest.approx(cost, abs=1e-3)


def test_joints_cost_by_their_square_and_again_beyond_a_hinge():
    joints = search_cost.natural_joints(torch.zeros(1))
    joints[0, 5] += 0.5
    found = terms(joints=joints)
    assert found["posture"] == pytest.approx(0.25) and found["stray"] == pytest.approx(0.04)
    assert found["effort"] == pytest.approx(16.0)


def test_a_pen_that_no_finger_holds_on_one_side_of_its_middle_lacks_support():
    tips = torch.tensor([gait.MIDDLE]).expand(4, 3) + torch.tensor(
        [[-0.04, -0.022, 0], [-0.018, -0.022, 0], [0.004, -0.022, 0], [-0.03, 0.022, 0]]
    )
    assert terms(tips=tips)["support"] == pytest.approx((0.012 - 0.004) / 0.01, abs=1e-4)


def test_a_thumb_away_from_the_pen_costs_as_a_gap_that_counts_little_and_as_itself():
    base = torch.tensor([gait.MIDDLE]).expand(4, 3)
    tips = base + torch.tensor(
        [[-0.04, -0.022, 0], [0.0, -0.022, 0], [0.04, 0.022, 0], [0.0, 0.042, 0]]
    )
    found = terms(tips=tips)
    assert found == pytest.approx({"gap": 0.1 * 2.0, "thumb": 2.0}, abs=1e-4)


def test_motion_costs_while_a_plan_stands_still():
    moving = {"velocity": torch.tensor([[0.05, 0.0, 0.0]]), "angvel": torch.tensor([[0, 0, 1.0]])}
    assert terms(still=True, **moving)["drift"] == pytest.approx(1.0 + 1.0)
    assert "drift" not in terms(still=False, **moving)


def test_a_proposal_brings_the_targets_to_the_natural_grasp_of_a_yaw_a_little_ahead():
    world = World(PenSpin(Config(randomize=False, **CALM)), 64, nthread=1, seed=3)
    world.restart(torch.ones(64, dtype=torch.bool))
    task, steps = world.task, torch.full((64,), 10.0)
    action = task.propose(world.sim, steps, torch.Generator().manual_seed(0))
    assert action.shape == (64, 16) and action.abs().max() <= 1.0
    reached = task.memory["target"] + task.cfg.action_scale * 10.0 * action
    now = search_cost.yaw(task.pen_mat[:, :, 2])
    ahead = torch.stack(
        [search_cost.natural_joints(now + lead) for lead in torch.linspace(0, 1, 101)]
    )
    free = action.abs() < 1.0  # these are not held back by the limit of an action
    apart = torch.where(free, (ahead - reached).abs(), 0.0).amax(dim=2).amin(dim=0)
    assert apart.max() < 0.02
    assert free.float().mean() > 0.5


def test_a_short_search_turns_the_pen_which_replays_bit_for_bit_in_the_full_model():
    cfg, small, kind, _ = compose_search(
        ["task=pen_spin", "search.beams=2", "search.plans=12", "search.keep=4"]
    )
    worlds = PlanWorld(World(kind(cfg.task), small.num_envs, nthread=1), small)
    search = Search.begin(worlds, 0, 1, 16)
    while not search.is_finished:
        search.advance()
    trajectory = search.replayed(World(kind(cfg.task), 1, nthread=1))
    assert torch.equal(trajectory.state[-1], search.beams.state["sim"][search.best])
    card = trajectory.card
    assert card["score"]["turns"] > 0.03 and not card["lost"] and not card["terminated"]
    assert card["score"]["turns"] == pytest.approx(search.progress().gain / 62.83, abs=1e-4)


def test_every_finger_is_a_limb_of_four_joints():
    assert PenSpin.limbs == ((0, 1, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11), (12, 13, 14, 15))


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.safetensors")), ids=lambda p: p.stem)
def test_shipped_trajectories_turn_the_pen_and_worlds_go_on_from_their_states(path):
    trajectory = read_trajectory(path)
    score = trajectory.card["score"]
    assert trajectory.steps == 400 and score["survival"] == 1.0 and score["turns"] > 1.5
    rows = torch.arange(0, 400, 50)
    cfg, _, kind, _ = compose_search(["task=pen_spin"])
    world = World(kind(cfg.task), len(rows), nthread=1)
    world.restore(trajectory.snapshot(rows))
    world.begin(trajectory.action[rows])
    world.advance()
    after = trajectory.state[rows + 1]
    torch.testing.assert_close(world.sim.get_state()[:, 1:24], after[:, 1:24], atol=1e-6, rtol=0)
