"""What the teacher of the pen task sees: layouts, lags, noise, touch and the point cloud."""

import math

import numpy as np
import pytest
import torch

from penspin_style.env.task import load_task
from tasks.pen import shapes
from tests.support.pen_world import (
    ENDLESS,
    QUIET,
    make,
    matrix,
    pen_pose,
    pen_sizes,
    put_pens,
    rotation_vector,
    step,
)

# PenSpin's 61 numbers: where each begins (digest 1.3)
PRIVILEGED = {
    **{"pen_pos": (0, 3), "pen_scale": (3, 1), "pen_mass": (4, 1), "pen_friction": (5, 1)},
    **{"pen_com": (6, 3), "pen_quat": (9, 4), "pen_angvel": (13, 3), "tip_pos": (16, 12)},
    **{"pen_restitution": (28, 1), "tactile": (29, 32)},
}
HOLD, DROP = 0.2, 0.1


def play(env, steps, seed=0):
    """Random actions; the observations, joints (exact) and targets after every step."""
    rng = torch.Generator().manual_seed(seed)
    seen, joints, targets = [], [], []
    for _ in range(steps):
        seen.append(step(env, 2 * torch.rand(env.action_spec.shape, generator=rng) - 1))
        joints.append(env.sim.data.qpos[:, :16].float())
        targets.append(env.task.memory["target"].clone())
    return seen, torch.stack(joints), torch.stack(targets)


# Joints and targets.


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_the_teacher_sees_three_frames_of_joints_and_targets_oldest_first(lag):
    env = make(num_envs=6, lag=lag, **QUIET, **ENDLESS)
    start = env.sim.data.qpos[:, :16].float()
    frames = [torch.cat((start, start), dim=1)] * (3 + lag)  # before the episode: as it began
    assert env.inputs[0].name == "teacher"
    assert env.inputs[0].size == 96
    root = env.current()["teacher"]
    assert torch.equal(root, torch.cat(frames[:3], dim=1))
    seen, joints, targets = play(env, 8)
    frames += [torch.cat(pair, dim=1) for pair in zip(joints, targets, strict=True)]
    for i, after in enumerate(seen):
        last = i + 3 + lag + 1 - lag
        assert torch.equal(after["teacher"], torch.cat(frames[last - 3 : last], dim=1)), i
    env.reset()
    start = env.sim.data.qpos[:, :16].float()
    assert torch.equal(env.current()["teacher"], torch.cat((start, start), dim=1).repeat(1, 3))


def test_joints_are_measured_with_an_offset_of_the_episode_and_noise_of_the_step():
    n, count = 64, 24
    env = make(num_envs=n, lag=0, **ENDLESS)
    assert env.cfg.joint_noise == [0.01, 0.005]
    root = env.current()["teacher"].view(n, 3, 32)
    first = root[:, 2, :16] - env.sim.data.qpos[:, :16].float()
    assert torch.equal(root[:, 0], root[:, 2])
    seen, joints, targets = play(env, count)
    frames = torch.stack([after["teacher"].view(n, 3, 32)[:, 2] for after in seen])
    assert torch.equal(frames[:, :, 16:], targets)  # noise-free
    error = (frames[:, :, :16] - joints).double()  # (count, n, 16)
    offset = error.mean(dim=0)
    noise = (error - offset) * math.sqrt(count / (count - 1))
    assert noise.std().item() == pytest.approx(0.005, rel=0.02)
    assert error[:, 0].std(dim=0).max() < 0.01  # one offset for the episode
    spread = math.hypot(0.01, 0.005 / math.sqrt(count))
    assert offset.std().item() == pytest.approx(spread, rel=5 / math.sqrt(2 * 16 * n))
    # the first frame has the offset and nothing else
    np.testing.assert_allclose(first, offset, atol=5 * 0.005 / math.sqrt(count))
    lagged = (noise[1:] * noise[:-1]).mean() / 0.005**2
    assert abs(lagged + 1 / count) < 0.03  # white


def test_a_new_episode_has_a_new_offset_and_the_others_keep_theirs():
    env = make(num_envs=8, **{**QUIET, "joint_noise": [0.01, 0.0]}, lag=0, **ENDLESS)

    def offset():
        return env.current()["teacher"][:, 64:80] - env.sim.data.qpos[:, :16].float()

    before = offset()
    mask = torch.tensor([True, False] * 4)
    env.reset(env.current().set("_reset", mask[:, None]))
    after = offset()
    torch.testing.assert_close(after[~mask], before[~mask], atol=1e-6, rtol=0.0)
    assert ((after - before)[mask].abs() > 1e-6).float().mean() > 0.99


def test_every_reading_frame_of_a_step_shows_the_same_noise():
    """What one group is shown is what the next one is, and later still in the history."""
    env = make(num_envs=4, lag=0, **ENDLESS)
    seen, *_ = play(env, 4)
    now, later = (after["teacher"].view(4, 3, 32) for after in seen[-2:])
    assert torch.equal(now[:, 1:], later[:, :2])


# Privileged.


def test_the_privileged_group_has_the_published_61_numbers_in_their_places():
    env = make(num_envs=6, **ENDLESS)
    (group,) = [i for i in env.inputs if i.name == "privileged"]
    places, at = {}, 0
    for feature in group.features:
        places[feature.name] = (at, feature.size)
        at += feature.size
    assert places == PRIVILEGED
    assert group.size == at == 61
    play(env, 3)
    old, before = pen_pose(env)
    seen = play(env, 1, seed=5)[0][0]["privileged"].numpy()
    pos, turn = pen_pose(env)
    params, pen, geom = env.sim.params, env.task.body, env.task.geom
    quat = env.sim.data.qpos[:, env.task.at + 3 : env.task.at + 7].numpy()
    tips = [env.model.site(name).id for name in ("ff_tip", "mf_tip", "rf_tip", "th_tip")]
    expected = {
        "pen_pos": pos,
        "pen_scale": pen_sizes(env)[0][:, None] / 0.04,
        "pen_mass": params.body_mass[:, pen, None],
        "pen_friction": params.geom_friction[:, geom, :1],
        "pen_com": params.body_ipos[:, pen],
        "pen_quat": quat,
        "pen_angvel": rotation_vector(turn @ before.transpose(0, 2, 1)) / 0.05,
        "tip_pos": env.sim.data.site_xpos[:, tips].reshape(6, 12),
        "pen_restitution": 2.0 - 2.0 * params.geom_solref[:, geom, 1:],
    }
    for name, value in expected.items():
        first, size = PRIVILEGED[name]
        atol = 2e-5 if name == "pen_angvel" else 2e-6
        np.testing.assert_allclose(seen[:, first : first + size], value, atol=atol, err_msg=name)
    assert np.abs(pos - old).max() > 1e-4
    assert set(np.unique(seen[:, 29:])) <= {0.0, 1.0}


def test_the_last_pose_before_a_restart_is_no_part_of_the_new_episodes_velocity():
    env = make(num_envs=4, **ENDLESS)
    play(env, 2)
    env.reset()
    first, size = PRIVILEGED["pen_angvel"]
    assert env.current()["privileged"][:, first : first + size].abs().max() < 1e-5
    assert not env.task.reward(env.sim, torch.zeros(4, 16))["linvel"].any()


# Touch. The sensors are read in the engine's memory, so that a test can press what it likes.


@pytest.fixture(scope="module")
def pressed():
    return make(num_envs=256, **ENDLESS)


def press(env, force, rng=None):
    """One control step after which the patches feel this force; what is observed."""
    env.task.apply_action(env.sim, torch.zeros(env.action_spec.shape))
    env.task.substeps(env.sim, 10, env.rng)
    env.task.touch.copy_(force)
    return env.task.observe(env.sim)["tactile"].clone()


def test_a_patch_is_on_from_five_hundredths_of_a_newton():
    env = make(num_envs=5, tactile_hold=0.0, tactile_dropout=0.0, **ENDLESS)
    force = torch.tensor([0.0, 0.0499, 0.05, 0.0501, 9.0])[:, None].expand(5, 32)
    assert press(env, force).tolist() == [[float(on)] * 32 for on in (0, 0, 1, 1, 1)]


def test_patches_are_felt_as_the_sensors_of_the_same_order_say():
    env = make(num_envs=8, tactile_hold=0.0, tactile_dropout=0.0, **ENDLESS)
    seen = play(env, 3)[0][-1]["privileged"][:, 29:]
    adr = env.model.sensor("touch_ff_proximal").adr[0]
    force = env.sim.data.sensordata[:, adr : adr + 32]
    assert torch.equal(seen, (force >= 0.05).float())
    assert seen.any(dim=1).float().mean() > 0.5


def share(of, among):
    """How many of those among are of that kind, and how far five sigma reach."""
    count = int(among.sum())
    assert count > 2000
    return float((of & among).sum()) / count, 5 * 0.5 / math.sqrt(count)


def test_patches_hold_their_last_value_and_drop_out_as_often_as_published(pressed):
    """Of what is on, a tenth reads off; of what changed, a fifth still reads as it last did."""
    env, rng = pressed, torch.Generator().manual_seed(0)
    env.reset()
    last, counts = env.task.observe(env.sim)["tactile"].clone(), []
    for _ in range(8):
        on = torch.rand(256, 32, generator=rng) < 0.5
        now = press(env, on.float())
        counts.append((last > 0, on, now > 0))
        last = now
    before, on, now = (torch.stack(rows) for rows in zip(*counts, strict=True))
    for was, is_on, expected in (
        (True, True, 1 - DROP),
        (False, True, (1 - HOLD) * (1 - DROP)),
        (True, False, HOLD * (1 - DROP)),
        (False, False, 0.0),
    ):
        measured, reach = share(now, (before == was) & (on == is_on))
        assert abs(measured - expected) < reach, (was, is_on)
        assert expected > 0 or measured == 0


def test_a_held_patch_repeats_what_was_shown_and_not_what_was_felt():
    """A channel that dropped out and is then held stays off, though it is pressed throughout."""
    env = make(num_envs=64, tactile_hold=0.0, tactile_dropout=1.0, **ENDLESS)
    felt = torch.ones(64, 32)
    assert not press(env, felt).any()
    env.cfg.tactile_hold, env.cfg.tactile_dropout = 1.0, 0.0
    assert not press(env, felt).any()
    env.cfg.tactile_hold = 0.0
    assert press(env, felt).all()
    env.cfg.tactile_hold = 1.0
    for _ in range(3):
        assert press(env, 0 * felt).all()


def test_touch_is_drawn_once_a_step_however_often_it_is_read(pressed):
    press(pressed, torch.full((256, 32), 1.0))
    one, other = (pressed.task.observe(pressed.sim)["tactile"] for _ in range(2))
    assert torch.equal(one, other)


def test_a_reset_forgets_what_was_touched():
    env = make(num_envs=4, tactile_hold=1.0, tactile_dropout=0.0, **ENDLESS)
    press(env, torch.ones(4, 32))
    env.reset()
    held = env.task.observe(env.sim)["tactile"]
    assert torch.equal(held, (env.task.touch >= 0.05).float())  # nothing holds, nothing drops
    assert torch.equal(press(env, torch.ones(4, 32)), held)  # holds what the reset showed


# The point cloud.


def test_the_cloud_lies_on_the_surface_of_each_pen_wherever_it_is():
    env = make(num_envs=8, **ENDLESS)
    rng = np.random.default_rng(0)
    quat = rng.normal(size=(8, 4))
    quat /= np.linalg.norm(quat, axis=1, keepdims=True)
    pos = rng.uniform(-1, 1, (8, 3))
    put_pens(env, pos, quat)
    points = env.task.observe(env.sim)["pen_points"].double().numpy()
    assert points.shape == (8, 100, 3)
    local = np.einsum("nij,npi->npj", matrix(quat), points - pos[:, None])  # R^T (p - pos)
    radius, half = pen_sizes(env)
    across = np.linalg.norm(local[..., :2], axis=2) / radius[:, None]
    along = local[..., 2] / half[:, None]
    top, bottom = np.abs(along - 1) < 1e-4, np.abs(along + 1) < 1e-4
    side = np.abs(across - 1) < 1e-4
    assert (top | bottom | side).all()
    assert (np.abs(along) < 1 + 1e-4).all() and (across < 1 + 1e-4).all()
    assert [top[0].sum(), bottom[0].sum(), (~top & ~bottom)[0].sum()] == [15, 15, 70]
    # the same points of every pen, scaled
    np.testing.assert_allclose(across, across[:1].repeat(8, axis=0), atol=1e-4)
    np.testing.assert_allclose(along, along[:1].repeat(8, axis=0), atol=1e-4)
    # spread evenly: over the discs (mean of the squared radius one half) and along the side
    caps = across[0, top[0] | bottom[0]]
    assert abs((caps**2).mean() - 0.5) < 5 * math.sqrt(1 / 12 / 30)
    rest = along[0, ~(top | bottom)[0]]
    assert abs(rest.mean()) < 5 * math.sqrt(1 / 3 / 70)
    assert rest.max() - rest.min() > 1.8


def test_the_cloud_is_in_the_world_and_of_this_moment():
    env = make(num_envs=2, **ENDLESS)
    seen = play(env, 2)[0][-1]
    middle = seen["points"].view(2, 100, 3).mean(dim=1)
    pos, turn = pen_pose(env)
    radius, half = pen_sizes(env)
    cloud = shapes.surface_points(torch.device("cpu")).double().mean(dim=0).numpy()
    local = cloud * np.stack((radius, radius, half), axis=1)
    np.testing.assert_allclose(middle, pos + np.einsum("nij,nj->ni", turn, local), atol=1e-6)


# Switches.


@pytest.mark.parametrize(
    ("switch", "lost"),
    [
        ("privileged", {"privileged"}),
        ("point_cloud", {"points"}),
        ("tactile", {"privileged/tactile"}),
    ],
)
@pytest.mark.parametrize("name", ["pen_spin", "pen_spin_student"])
def test_an_ablation_removes_exactly_its_inputs(name, switch, lost):
    full, less = make(name), make(name, **{switch: False})

    def terms(env):
        return {f"{i.name}/{f.name}" for i in env.inputs for f in i.features}

    gone = terms(full) - terms(less)
    assert gone == {t for t in terms(full) if t in lost or t.split("/")[0] in lost}
    assert terms(less) < terms(full)
    one, other = (play(env, 3)[0][-1] for env in (full, less))
    for i in less.inputs:  # and the world does not notice
        a, b = one[i.name], other[i.name]
        assert torch.equal(a[:, :29] if "tactile" in switch and i.name == "privileged" else a, b)
    assert torch.equal(one["reward"], other["reward"])


def test_nothing_is_computed_that_no_group_reads():
    env = make(num_envs=2, privileged=False, point_cloud=False)
    assert set(env.task.observe(env.sim)) == {"proprio"}


# Settings.


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"joint_noise": [0.1]}, r"task\.joint_noise must be two standard deviations >= 0"),
        ({"action_noise": [0.1, -0.1]}, r"task\.action_noise must be two .*got \[0\.1, -0\.1\]"),
        ({"push_probability": 1.5}, r"task\.push_probability must be in \[0, 1\], got 1\.5"),
        ({"tactile_hold": -0.1}, r"task\.tactile_hold must be in \[0, 1\]"),
        ({"tactile_dropout": 2.0}, r"task\.tactile_dropout must be in \[0, 1\]"),
        ({"lag": -1}, r"task\.lag must be >= 0, got -1"),
        ({"scales": []}, r"task\.scales, less task\.scale_jitter >= 0, must be > 0, got \[\]"),
        ({"scales": [0.02]}, r"task\.scales, less .* must be > 0, got \[0\.02\] and 0\.025"),
        ({"scale_jitter": -0.01}, r"task\.scale_jitter >= 0, must be .* and -0\.01"),
    ],
)
def test_invalid_settings_are_refused(setting, says):
    with pytest.raises(ValueError, match=says):
        load_task("pen_spin").Config(**setting)
