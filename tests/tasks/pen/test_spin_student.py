"""What the student of the pen task is given: its inputs, their order, and one base of time."""

import itertools

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.task import load_task
from tasks.pen.spin_student import READS
from tasks.robots.allegro import model as allegro
from tests.support.pen_world import ENDLESS, make, pen_pose, pen_sizes, step

FRAME = 32
SIZES = {
    "proprio": 30 * 32,
    "fingertips": 12,
    "pen_ends": 3 * 6,
    "tactile": 30 * 32,
    "pen_points": 300,
}
ALL = ["proprio", "fingertips", "pen_ends", "tactile", "pen_points"]


def student(num_envs=4, **config):
    return make("pen_spin_student", num_envs, **{**ENDLESS, **config})


def play(env, steps, seed=0):
    """Random actions; all that is observed, the root first."""
    rng = torch.Generator().manual_seed(seed)
    actions = (2 * torch.rand(env.action_spec.shape, generator=rng) - 1 for _ in range(steps))
    return [env.current(), *(step(env, action) for action in actions)]


def parts(env, td):
    """The student's vector, taken apart: name -> (n, history, ...)."""
    (group,) = [i for i in env.inputs if i.name == "student"]
    sizes = [f.size for f in group.features]
    values = td["student"].split(sizes, dim=1)
    return {
        f.name: value.view(len(value), f.history, *f.shape)
        for f, value in zip(group.features, values, strict=True)
    }


@pytest.mark.parametrize(
    "reads",
    [
        ["proprio"],
        ["proprio", "fingertips"],
        ["proprio", "fingertips", "pen_ends"],
        ["proprio", "fingertips", "tactile"],
        ["proprio", "fingertips", "tactile", "pen_ends"],
        ["proprio", "pen_points"],
        ALL,
    ],
)
def test_a_student_is_given_what_it_reads_in_that_order(reads):
    env = student(reads=reads)
    (group,) = [i for i in env.inputs if i.name == "student"]
    assert [f.name for f in group.features] == reads
    assert [f.size for f in group.features] == [SIZES[name] for name in reads]
    assert [f.history for f in group.features] == [READS[name] for name in reads]
    teacher = make("pen_spin", 1)  # and the teacher's groups are the teacher's
    assert [i for i in env.inputs if i.name != "student"] == list(teacher.inputs)


def test_the_student_hand_is_measured_worse_and_has_one_scale_of_pens():
    cfg = load_task("pen_spin_student").Config()
    assert cfg.joint_noise == [0.02, 0.01]
    assert cfg.reads == ["proprio", "fingertips"]
    env = student(64)
    scale = pen_sizes(env)[0] / 0.04
    assert 0.265 <= scale.min() < 0.268 and 0.312 < scale.max() <= 0.315
    assert set(env.task._slots(env.sim).tolist()) == {0}


def test_the_newest_three_frames_of_the_student_are_the_teachers_three():
    env = student(reads=ALL)
    for td in play(env, 35):
        newest = parts(env, td)["proprio"][:, -3:]
        assert torch.equal(newest.reshape(4, 96), td["teacher"])


def test_the_history_holds_thirty_frames_oldest_first_and_before_them_the_first():
    env = student()
    seen = play(env, 35)
    frames = [parts(env, td)["proprio"] for td in seen]
    for td, later in itertools.pairwise(frames):
        assert torch.equal(td[:, 1:], later[:, :-1])
    first = frames[0]
    assert first.shape == (4, 30, FRAME)
    assert torch.equal(first, first[:, :1].expand_as(first))
    assert torch.equal(frames[29][:, 0], first[:, 0])
    assert len({tuple(row.tolist()) for row in frames[-1][0]}) == 30
    env.reset()  # nothing of the last episode shows through
    again = parts(env, env.current())["proprio"]
    assert torch.equal(again, again[:, :1].expand_as(again))
    assert not torch.equal(again, first)


def test_fingertips_are_those_of_the_newest_measured_joints():
    env = student()
    data = mujoco.MjData(env.model)
    tips = [env.model.site(name).id for name in allegro.TIPS]
    for td in play(env, 6)[::3]:
        given = parts(env, td)
        for i in range(4):
            data.qpos[:16] = given["proprio"][i, -1, :16].numpy()
            mujoco.mj_kinematics(env.model, data)
            np.testing.assert_allclose(given["fingertips"][i, 0], data.site_xpos[tips], atol=1e-6)
    exact = env.sim.data.site_xpos[:, tips]
    assert (given["fingertips"][:, 0] - exact).norm(dim=2).max() > 1e-3  # noise and all


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_everything_that_a_student_reads_is_equally_late(lag):
    env = student(reads=ALL, lag=lag, ends_noise=0.0)
    exact, seen = [], []
    rng = torch.Generator().manual_seed(0)
    for i in range(8):
        td = env.current()
        if i:
            td = step(env, 2 * torch.rand(env.action_spec.shape, generator=rng) - 1)
        pos, turn = pen_pose(env)
        half = pen_sizes(env)[1][:, None] * turn[:, :, 2]
        base = np.array([0.0, 0.0, 0.5])
        exact.append(
            {
                "target": env.task.memory["target"].clone(),
                "tactile": td["privileged"][:, -32:],
                "pen_points": td["points"].view(4, 100, 3),
                "pen_ends": torch.from_numpy(np.stack((pos - half, pos + half), 1) - base).float(),
            }
        )
        seen.append(parts(env, td))
    for i, given in enumerate(seen):
        for back in range(3):  # the newest three frames
            then = exact[max(0, i - lag - back)]
            frame = given["proprio"][:, -1 - back]
            assert torch.equal(frame[:, 16:], then["target"]), (i, back)
            assert torch.equal(given["tactile"][:, -1 - back], then["tactile"])
            ends = given["pen_ends"][:, -1 - back]
            torch.testing.assert_close(ends, then["pen_ends"], atol=1e-6, rtol=0.0)
        assert torch.equal(given["pen_points"][:, 0], exact[max(0, i - lag)]["pen_points"])


def test_ends_are_seen_with_the_noise_of_a_camera_that_is_drawn_once_a_frame():
    n = 64
    env = student(n, reads=["proprio", "pen_ends"], lag=0)
    width = env.cfg.ends_noise
    assert width == pytest.approx(0.29 * 0.04)
    frames = [parts(env, td)["pen_ends"] for td in play(env, 20)[1:]]
    for earlier, later in itertools.pairwise(frames):
        assert torch.equal(earlier[:, 1:], later[:, :-1])
    pos, turn = pen_pose(env)
    half = pen_sizes(env)[1][:, None] * turn[:, :, 2]
    exact = np.stack((pos - half, pos + half), 1) - [0.0, 0.0, 0.5]
    errors = frames[-1][:, -1].double().numpy() - exact
    assert np.abs(errors).max() <= width + 1e-6
    assert errors.std() == pytest.approx(width / np.sqrt(3), rel=0.1)
    assert abs(errors.mean()) < 5 * width / np.sqrt(3 * errors.size)


@pytest.mark.parametrize(
    ("reads", "says"),
    [
        ([], "must begin with proprio"),
        (["fingertips", "proprio"], "must begin with proprio"),
        (["proprio", "tactile", "tactile"], "each once"),
        (
            ["proprio", "smell"],
            r"task\.reads has \['smell'\], there are \['fingertips', 'pen_ends'",
        ),
    ],
)
def test_inputs_that_do_not_exist_are_refused(reads, says):
    with pytest.raises(ValueError, match=says):
        load_task("pen_spin_student").Config(reads=reads)
