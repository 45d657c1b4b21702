"""The search for grasps: what counts as held, and that what is shipped holds."""

import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.task import load_task
from tasks.pen import grasp, grasps
from tasks.pen.grasp import Collected, collect, held
from tasks.robots.allegro import description
from tasks.robots.allegro import model as allegro
from tests.support.pen_world import (
    EAST,
    about,
    make,
    multiply,
    pen_pose,
    pen_sizes,
    put_pens,
    step,
    wilson,
)

RULES = {"few": 0, "low": 1, "low_end": 2, "high_end": 3}
BANDS = {"low": (0.60, 0.63), "high": (0.62, 0.65)}


def lying(env, rise):
    """Quaternions of pens whose ends are that much above and below the middle, m."""
    sine = rise / pen_sizes(env)[1]
    return multiply(about([0, 1, 0], -np.arcsin(sine)), EAST)


# The rules.


@pytest.mark.parametrize("band", ["low", "high"])
def test_both_ends_stay_in_their_band_and_the_middle_above_its_height(band):
    env = make("pen_grasp", 16, band=band)
    low, high = BANDS[band]
    near = 1e-5
    middle = (low + high) / 2
    for rise, height, broken in (
        (0.0, middle, set()),
        (0.014, low + 0.014 + near, set()),
        (0.014, low + 0.014 - near, {"low_end"}),
        (0.014, high - 0.014 - near, set()),
        (0.014, high - 0.014 + near, {"high_end"}),
        (0.0, low - near, {"low_end", "low"} if band == "low" else {"low_end"}),
        (0.0, 0.6 - near, {"low_end", "low"}),
        (0.0, high + near, {"high_end"}),
        (0.02, middle, {"low_end", "high_end"}),
    ):
        for side in (1, -1):
            put_pens(env, [[0.0, 0.0, height]] * 16, lying(env, side * rise))
            rows = env.task.broken(env.sim)
            assert rows.shape == (16, 4)
            expected = [name in broken for name in RULES if name != "few"]
            assert rows[:, 1:].tolist() == [expected] * 16, (rise, height)
            assert env.task.terminated(env.sim).tolist() == rows.any(dim=1).tolist()


def test_a_fingertip_touches_where_its_ball_is_half_a_millimetre_from_the_pens_side():
    """Against MuJoCo's distances of the two geoms, each environment with its own pen."""
    n = 64
    env = make("pen_grasp", n)
    rng = torch.Generator().manual_seed(0)
    rows = grasps.load("", [0.28])[0][torch.randint(3000, (n,), generator=rng)]
    rows[:, :16] += 0.02 * torch.randn(n, 16, generator=rng)
    env.task.place(env.sim, torch.ones(n, dtype=torch.bool), rows)
    env.sim.forward()
    model, radius_half = env.model, np.stack(pen_sizes(env), 1)
    data, geom = mujoco.MjData(model), model.geom("pen").id
    tips = [model.geom(f"hand_{tip}").id for tip in allegro.TIPS]
    gaps, along = np.empty((n, 4)), np.empty((n, 4))
    pos, turn = pen_pose(env)
    for i in range(n):
        model.geom_size[geom, :2] = radius_half[i]
        data.qpos[:] = env.sim.data.qpos[i].numpy()
        mujoco.mj_kinematics(model, data)
        gaps[i] = [mujoco.mj_geomDistance(model, data, tip, geom, 0.1, None) for tip in tips]
        along[i] = (data.geom_xpos[tips] - pos[i]) @ turn[i][:, 2]
    seen = env.task.touching(env.sim).numpy()
    beside = np.abs(along) < radius_half[:, 1:]  # not at an edge of an end
    clear = (np.abs(gaps - 5e-4) > 2e-5) & beside
    assert clear.mean() > 0.95
    assert np.array_equal(seen[clear], (gaps < 5e-4)[clear])
    assert not seen[~beside].any()
    assert 0.2 < seen.mean() < 0.8


def test_a_fingertip_beyond_the_end_of_a_pen_does_not_touch_it():
    env = make("pen_grasp", 4)
    tips = allegro.fingertips(env.sim.data.qpos[:, :16])[:, 3].numpy()  # thumbs
    half = pen_sizes(env)[1]
    for beyond, touching in ((-1e-4, True), (1e-4, False)):
        put_pens(
            env, tips - np.stack(((half + beyond), 0 * half, 0 * half), 1), np.tile(EAST, (4, 1))
        )
        assert env.task.touching(env.sim)[:, 3].tolist() == [touching] * 4


def test_two_fingertips_must_touch_from_the_second_step_on():
    env = make("pen_grasp", 4)
    put_pens(env, [[0.0, 0.5, 0.615]] * 4, np.tile(EAST, (4, 1)))
    for age, loose in ((0, False), (1, False), (2, True), (3, True)):
        env.task.memory["age"].fill_(age)
        assert env.task.broken(env.sim)[:, 0].tolist() == [loose] * 4
        assert env.task.terminated(env.sim).tolist() == [loose] * 4


def test_the_age_counts_control_steps_since_the_last_reset():
    env = make("pen_grasp", 3)
    for _ in range(3):
        step(env)
    assert env.task.memory["age"].tolist() == [3] * 3
    env.reset(env.current().set("_reset", torch.tensor([[True], [False], [True]])))
    assert env.task.memory["age"].tolist() == [0, 3, 0]


def test_episodes_begin_at_the_published_grasps_with_every_joint_moved_a_little():
    n = 512
    env = make("pen_grasp", n)
    rows, canonical = env.task.state(env.sim), grasps.canonical()
    which = env.task.memory["canonical"]
    assert torch.bincount(which, minlength=6).min() > n / 6 - 5 * math.sqrt(n * 5 / 36)
    moved = rows - canonical[which]
    assert moved[:, :16].abs().max() <= 0.05 + 1e-6
    assert moved[:, :16].std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.03)
    np.testing.assert_allclose(moved[:, 16:], 0.0, atol=1e-6)
    assert not env.sim.data.qvel.any()


def test_nothing_but_the_pens_mass_and_shape_differs_between_the_environments():
    env = make("pen_grasp", 64)
    radius, half = pen_sizes(env)
    np.testing.assert_allclose(radius, 0.04 * 0.28, rtol=1e-6)
    assert {round(float(r), 3) for r in half / radius} == {5.0, 5.5, 6.0, 6.5}
    mass = env.sim.params.body_mass[:, env.task.body]
    assert 0.010 <= mass.min() < 0.011 and 0.019 < mass.max() <= 0.020
    drawn = {"body_mass", "body_inertia", "geom_size", "geom_pos"}
    assert set(dir(env.sim.params)) == drawn
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    target = env.task.state(env.sim)[:, :16].clamp(low, high)
    step(env)
    assert torch.equal(env.sim.data.ctrl.float(), target)  # no noise
    assert not env.sim.data.qfrc_applied.any()  # no pushes


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"band": "middle"}, r"task\.band must be one of \['high', 'low'\], got 'middle'"),
        ({"scales": [0.28, 0.29]}, r"task\.scales must be one scale, got \[0\.28, 0\.29\]"),
    ],
)
def test_invalid_settings_are_refused(setting, says):
    with pytest.raises(ValueError, match=says):
        load_task("pen_grasp").Config(**setting)


# The search.


def test_collected_grasps_are_the_last_states_of_episodes_that_ended_at_their_time(monkeypatch):
    env = make("pen_grasp", 32, episode_length=5, seed=3)
    kept, length, real = [], [], env.step

    def watch(action):
        after = real(action)
        good = after["next", "truncated"] & ~after["next", "terminated"]
        kept.append(env.task.state(env.sim)[good.view(-1)])
        length.append(env.step_count[good.view(-1)])
        return after

    monkeypatch.setattr(env, "step", watch)
    found = Collected()
    rows = collect(env, env.task, 20, found)
    assert torch.equal(rows, torch.cat(kept))
    assert set(torch.cat(length).tolist()) == {5}
    assert len(rows) == found.kept >= 20
    assert sum(found.began.values()) == found.kept
    assert found.kept < found.tried
    assert max(found.dropped.values()) <= found.tried - found.kept <= sum(found.dropped.values())
    again = collect(env, env.task, 1, found)
    assert found.kept == len(rows) + len(again)


def test_a_search_that_finds_nothing_says_why(monkeypatch):
    env = make("pen_grasp", 4, lowest=0.9)
    rule, real = grasp.REASONS[1], env.step

    def ended(action):  # as many at once as make it give up
        found.tried += 50_000
        return real(action)

    found = Collected()
    monkeypatch.setattr(env, "step", ended)
    with pytest.raises(ValueError, match=rf"none of 100\d+ grasps held the pen: .*{rule}"):
        collect(env, env.task, 1, found)


def test_success_is_to_have_held_the_pen_for_1_6_s():
    env = make("pen_grasp", 8, episode_length=60)
    rows = grasps.load("", [0.28])[0][:8]
    env.task.place(env.sim, torch.ones(8, dtype=torch.bool), rows)
    env.sim.forward()
    success, held_now = [], []
    for _ in range(41):
        after = step(env)
        success.append(after["success"].view(-1))
        held_now.append(after["reward"].view(-1) > 0)
    assert not torch.stack(success[:39]).any()
    assert torch.equal(success[39], held_now[39]) and torch.equal(success[40], held_now[40])
    assert success[39].sum() >= 7


@pytest.mark.parametrize("scale", [0.28, 0.29])
def test_of_the_shipped_grasps_99_in_100_hold_a_pen_of_any_mass(scale):
    env = make("pen_grasp", 200, scales=[scale], seed=7)
    rng = torch.Generator().manual_seed(11)
    rows = grasps.load("", [scale])[0]
    rows = rows[torch.randperm(len(rows), generator=rng)[:200]]
    count = int(held(env, env.task, rows, rng).sum())
    assert wilson(count, 200, z=3)[1] >= 0.99, count


def test_what_is_no_grasp_is_not_held_and_each_row_is_checked_for_itself():
    env = make("pen_grasp", 16, episode_length=5)
    rng = torch.Generator().manual_seed(1)
    rows = grasps.load("", [0.28])[0][:24].clone()  # more than there are environments
    bad = torch.arange(24) % 3 == 0
    rows[bad, 17] += 0.3  # the pen is beside the hand
    is_held = held(env, env.task, rows, rng)
    assert not is_held[bad].any()
    assert is_held[~bad].sum() >= 15
