"""What the student of ALOHA's insertion sees, what it is told to do, and what is hidden from it."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from penspin_style.data.rollouts import Rollouts
from penspin_style.env.env import Env
from penspin_style.env.task import Latency, ObsTerm
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import save_policy
from penspin_style.render.renderer import View, make_renderer
from penspin_style.train.compose import compose_train
from tasks.aloha import one_arm, peg_insertion
from tasks.aloha.one_arm import ActionLatency, Noise
from tasks.aloha.peg_insertion_student import (
    CAMERAS,
    HIDDEN,
    IMAGES,
    PROPRIOCEPTION,
    Config,
    PegInsertionStudent,
)
from tasks.robots.aloha import description
from tasks.robots.aloha.keyframes import KEYFRAMES
from tests.support import training
from tests.support.terminal import call

NAN = float("nan")
AT_ONCE = ActionLatency([1.0], [1.0])
TEACHER = {"teacher": {name: ObsTerm() for name in peg_insertion.STATE}}
NUMBERS = {**TEACHER, "student": {name: ObsTerm() for name in PROPRIOCEPTION}}
OWN = torch.tensor(([0.5] * 6 + [0.05]) * 2)
"""What an action of the insertion's teacher, 0.01 rad or 0.001 m, is in channels of 0.02."""
SMALL = (
    *("num_envs=2", "algo.horizon=2", "total_samples=8", "task.episode_length=9", "loggers=[csv]"),
    *("eval_every=0", "final_episodes=1", "video=false", "checkpoint_every=9", "algo.encoder=''"),
)


def make(num_envs=4, *, seed=1, labels=False, observation=NUMBERS, **config):
    """Without images, latency, noise and hidden objects, unless asked for."""
    quiet = {"noise": Noise(scale=0.0), "action_latency": AT_ONCE, "latency": {}, "hold_out": 0.0}
    config = quiet | {"observation": observation} | config
    return Env(PegInsertionStudent(Config(**config)), num_envs, seed=seed, nthread=1, labels=labels)


def seeing(num_envs=4, **config):
    """The same with images."""
    return make(num_envs, observation=Config().observation, **config)


def step(env, action=None):
    action = torch.zeros(env.num_envs, 14) if action is None else action
    return env.step_and_maybe_reset(env.current().set("action", action))[0]["next"]


def wander(env, steps, seed=0):
    rng = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        step(env, 2 * torch.rand(env.num_envs, 14, generator=rng) - 1)


def raise_hands(env, mask):
    """Put both hands above the switch's height."""
    up = torch.tensor(KEYFRAMES["insertion"]["preinsert"][0], dtype=env.sim.data.qpos.dtype)
    up[[1, 9]] = -0.6
    env.sim.data.qpos[mask, :16] = up[:16]
    env.sim.forward()


def policy(folder, features, naction, actions, seed=0):
    """A small policy with random weights."""
    rng = torch.Generator().manual_seed(seed)
    size = sum(f.size for f in features)
    net = GaussianPolicy(
        "teacher", size, naction, hidden=[8], activation="elu", init_std=0.5, rng=rng
    )
    for parameter in net.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=rng)
    card = PolicyCard(
        "aloha_peg_insertion",
        (Input("teacher", tuple(features)),),
        actions,
        (),
        0.05,
        network=net.describe(),
    )
    save_policy(net, card, folder)
    return net.eval()


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Folder and policy of each teacher: of the pick, of the insertion."""
    folder = tmp_path_factory.mktemp("teachers")
    shapes = ((8,), (8,), (3,), (3,), (2, 3), (2, 3), (3,), (3,), (2, 3), (7,))
    features = [
        Feature(name, shape, unit)
        for (name, unit), shape in zip(one_arm.UNITS.items(), shapes, strict=True)
    ]
    pick = policy(folder / "pick", features, 7, description.actions(("left",)))
    (seen,) = (i for i in make(1).inputs if i.name == "teacher")
    own = description.actions(scale=0.01, gripper_scale=0.001)
    insertion = policy(folder / "insertion", seen.features, 14, own, seed=1)
    return {
        "pick": (str(folder / "pick"), pick),
        "insertion": (str(folder / "insertion"), insertion),
    }


def picked(net, env):
    """What a policy of the pick does on each half of what the teacher sees."""
    with torch.no_grad():
        return net.act(env.current()["teacher"][:, :106].view(-1, 2, 53)).flatten(1)


# What is observed.


def test_the_student_has_33_numbers_and_four_images():
    env = seeing(2)
    assert env.groups.reads("student") == ("student", *IMAGES)
    inputs = {i.name: i for i in env.inputs}
    assert [(f.name, f.size) for f in inputs["student"].features] == [
        *(("left_qpos", 8), ("right_qpos", 8)),
        *(("left_tracking_error", 8), ("right_tracking_error", 8), ("has_switched", 1)),
    ]
    assert {inputs[f"{c}_rgb"].tensor for c in CAMERAS} == {("uint8", (32, 32, 3))}
    assert {inputs[f"{c}_depth"].tensor for c in CAMERAS} == {("float32", (32, 32))}
    plain = Env(peg_insertion.PegInsertion(peg_insertion.Config()), 1)
    assert inputs["teacher"] == plain.inputs[0]
    assert Config().latency == {"student": Latency()}


def test_the_numbers_are_those_that_a_robot_computes():
    env = make(6)
    wander(env, 5)
    raise_hands(env, torch.tensor([True, False] * 3))
    wander(env, 1)
    seen = env.current()["student"].numpy()
    offered = {f.name: f for f in description.PROPRIOCEPTION}
    (given,) = (i for i in env.inputs if i.name == "student")
    assert all(offered[f.name] == f for f in given.features)
    for row in range(6):
        qpos, ctrl = env.sim.data.qpos[row].numpy(), env.sim.data.ctrl[row].numpy()
        joints = np.concatenate((qpos[:7], qpos[8:15]))  # one finger of each hand is measured
        switched = description.has_switched(joints)
        robot = description.proprioception(joints, ctrl, switched=switched)
        assert switched == (row % 2 == 0)
        expected = np.concatenate([robot[name] for name in PROPRIOCEPTION])
        # the other finger follows the measured one by a soft constraint
        np.testing.assert_allclose(seen[row], expected, atol=2e-3)
        first = [i for i in range(33) if i not in (7, 15, 23, 31)]
        np.testing.assert_allclose(seen[row][first], expected[first], atol=1e-6)
        np.testing.assert_allclose(seen[row][[7, 15]], qpos[[7, 15]], atol=1e-6)


def test_measured_joints_are_off_by_up_to_a_twentieth_to_either_side_and_fingers_are_exact():
    assert Config().noise == Noise(joint_pos=0.05, object_angle=7.5)
    env = make(256, noise=Config().noise)
    step(env)
    seen = env.current()["student"]
    qpos, ctrl = env.sim.data.qpos[:, :16].float(), env.sim.data.ctrl.float()
    off = seen[:, :16] - qpos
    joints = [*range(6), *range(8, 14)]
    assert (off[:, [6, 7, 14, 15]] == 0.0).all()
    assert 0.049 < off[:, joints].max() <= 0.05 + 1e-6
    assert -0.05 - 1e-6 <= off[:, joints].min() < -0.049
    assert off[:, joints].mean().abs() < 0.002
    targets = torch.cat([ctrl[:, [*range(a, a + 7), a + 6]] for a in (0, 7)], dim=1)
    torch.testing.assert_close(seen[:, 16:32], seen[:, :16] - targets)


def test_has_switched_stays_once_both_hands_were_up_and_is_gone_with_the_episode():
    env = make(2, episode_length=4)
    raise_hands(env, torch.tensor([True, False]))
    step(env)
    assert env.current()["student"][:, -1].tolist() == [1.0, 0.0]
    env.sim.data.qpos[0, :16] = env.sim.data.qpos[1, :16].clone()
    env.sim.forward()
    step(env)
    assert env.current()["student"][:, -1].tolist() == [1.0, 0.0]
    step(env)
    step(env)
    assert env.step_count.tolist() == [0, 0]
    assert env.current()["student"][:, -1].tolist() == [0.0, 0.0]


# The walk.


def test_the_student_acts_from_the_first_step_at_one_scale(teachers):
    env = make(3, pick_policy=teachers["pick"][0])
    assert "learner_acts" not in env.current().keys()  # noqa: SIM118
    for raised in (False, True):
        if raised:
            raise_hands(env, torch.ones(3, dtype=torch.bool))
        before, action = env.sim.data.ctrl.clone(), torch.full((3, 14), -0.3)
        step(env, action)
        low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
        wanted = (before + 0.02 * action).clamp(low, high)
        torch.testing.assert_close(env.sim.data.ctrl, wanted, atol=1e-6, rtol=0)
    assert {c.scale for c in env.task.actions} == {0.02}


def test_a_dropped_object_and_time_end_no_episode_but_a_tilted_one_does():
    env = make(3, window=1)
    raise_hands(env, torch.ones(3, dtype=torch.bool))
    for _ in range(3):
        seen = step(env)
    assert (env.task.memory["since"] >= 3).all() and env.task.dropped(env.sim).all()
    assert not seen["terminated"].any()
    env.sim.data.qpos[1, 26:30] = torch.tensor([0.5**0.5, 0.0, -(0.5**0.5), 0.0])
    env.sim.forward()
    assert env.task.terminated(env.sim).tolist() == [False, True, False]


# Labels.


def test_before_the_switch_the_label_is_the_picks_action_on_each_half(teachers):
    path, net = teachers["pick"]
    env = make(6, pick_policy=path, labels=True, noise=Config().noise)
    wander(env, 3)
    raise_hands(env, torch.tensor([True] + [False] * 5))
    step(env)
    label = env.current()["task_label"]
    torch.testing.assert_close(label[1:], picked(net, env)[1:], atol=1e-6, rtol=0)
    assert label[1:].abs().max() > 0.1
    assert label[0].isnan().all()


def test_a_larger_step_of_the_pick_is_cut_off_at_what_an_action_can_say(teachers):
    path, net = teachers["pick"]
    env = make(6, pick_policy=path, labels=True, action_scale=0.04, gripper_scale=0.001)
    factor = torch.tensor(([0.5] * 6 + [20.0]) * 2)
    expected = (factor * picked(net, env)).clamp(-1, 1)
    torch.testing.assert_close(env.current()["task_label"], expected, atol=1e-6, rtol=0)
    assert (expected[:, [6, 13]].abs() == 1).any()


def test_asking_for_labels_changes_nothing(teachers):
    path, _ = teachers["pick"]
    one, other = (make(3, pick_policy=path, labels=labels) for labels in (True, False))
    wander(one, 4)
    one.task.label(one.sim)
    wander(other, 4)
    assert torch.equal(one.current()["student"], other.current()["student"])
    assert torch.equal(one.sim.get_state(), other.sim.get_state())


def test_an_arm_without_its_object_is_to_do_nothing_and_the_other_one_goes_on(teachers):
    path, net = teachers["pick"]
    env = make(64, pick_policy=path, labels=True, hold_out=0.5)
    hidden = env.task.memory["hidden"]
    assert {tuple(row) for row in hidden.tolist()} == {(a, b) for a in (0, 1) for b in (0, 1)}
    label = env.current()["task_label"].view(64, 2, 7)
    assert (label[hidden] == 0.0).all()
    expected = picked(net, env).view(64, 2, 7)
    torch.testing.assert_close(label[~hidden], expected[~hidden], atol=1e-6, rtol=0)


def test_a_training_learns_from_both_teachers_in_the_students_channels(teachers, tmp_path):
    pick, insertion = (teachers[name] for name in ("pick", "insertion"))
    run = training.make(
        tmp_path, "task=aloha_peg_insertion_student", *SMALL, "num_envs=4", "total_samples=16",
        f"task.pick_policy={pick[0]}", f"algo.teacher={insertion[0]}", "task.hold_out=0.0",
    )  # fmt: skip
    assert run.fit(quiet=True) == 0
    env, algo = run.env, run.algo
    raise_hands(env, torch.tensor([True, False, True, False]))
    step(env)
    td = algo.act(env.current())
    with torch.no_grad():
        after = OWN * insertion[1].act(td["teacher"])
    wanted = torch.where(env.task.is_up(env.sim)[:, None], after, picked(pick[1], env))
    torch.testing.assert_close(td["label"], wanted, atol=1e-6, rtol=0)
    assert after.abs().max() <= 0.5 and after[:, [6, 13]].abs().max() <= 0.05


def test_what_drives_a_recording_are_both_teachers(teachers, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pick, insertion = (teachers[name] for name in ("pick", "insertion"))
    line = (
        f"record {insertion[0]} rows task=aloha_peg_insertion_student task.hold_out=0 "
        f"task.pick_policy={pick[0]} task.episode_length=3 --episodes 2 --num-envs 2"
    )
    assert call(line) == 0
    recorded = Rollouts(tmp_path / "rows")
    assert recorded.naction == 14 and {i.name for i in recorded.inputs} >= {"student", *IMAGES}


def test_without_a_pick_the_teacher_labels_every_step_but_of_an_arm_without_its_object():
    env = make(64, labels=True, hold_out=0.5)
    label, hidden = env.current()["task_label"].view(64, 2, 7), env.task.memory["hidden"]
    assert (label[hidden] == 0.0).all() and label[~hidden].isnan().all()


def test_the_tasks_script_teaches_a_student_from_the_table_on(tmp_path):
    overrides = ("task=aloha_peg_insertion_student", *SMALL, "task.pick_policy=''")
    run = training.make(tmp_path, *overrides, "algo.teacher=expert", "task.hold_out=0.0")
    assert run.fit(quiet=True) == 0
    td = run.env.current()
    script = run.env.task.expert(run.env.sim).act()
    torch.testing.assert_close(run.algo.act(td)["label"], script, atol=1e-6, rtol=0)
    assert script.abs().max() == 1.0


def test_a_pick_that_is_not_there_is_refused_by_a_distillation_alone(teachers, tmp_path):
    overrides = ("task=aloha_peg_insertion_student", *SMALL, "task.pick_policy=nowhere")
    with pytest.raises(ValueError, match=r"^task\.pick_policy=nowhere") as caught:
        training.make(tmp_path, *overrides, f"algo.teacher={teachers['insertion'][0]}")
    assert "\n" not in str(caught.value)
    step(make(1, pick_policy="nowhere"))


# Hidden objects.


def test_the_published_share_of_objects_is_hidden_in_training_and_none_in_evaluation():
    env = make(2000, hold_out=Config().hold_out)
    hidden = env.task.memory["hidden"].float()
    sigma = (0.07 * 0.93 / 2000) ** 0.5
    assert (hidden.mean(dim=0) - 0.07).abs().max() < 4 * sigma
    both = hidden.all(dim=1).float().mean()
    assert abs(both - 0.07**2) < 4 * (0.0049 / 2000) ** 0.5
    cfg, _, _ = compose_train(["task=aloha_peg_insertion_student"])
    assert (cfg.task.hold_out, cfg.eval.task) == (0.07, {"hold_out": 0.0})
    for share in (-0.1, 1.5, NAN):
        with pytest.raises(ValueError, match=r"task\.hold_out must be in \[0, 1\]"):
            Config(hold_out=share)


def pixels(env, names, size=48):
    """Pixels of geoms in each camera's image, (num_envs, cameras)."""
    views = [View(c, size, size, rgb=False, depth=False, segmentation=True) for c in CAMERAS]
    geoms = torch.tensor(
        [i for i in range(env.model.ngeom) if env.model.geom(i).name.startswith(names)]
    )
    images = make_renderer(env.sim, views).render()
    seen = [torch.isin(images[c]["segmentation"], geoms).flatten(1).sum(dim=1) for c in CAMERAS]
    return torch.stack(seen, dim=1)


def test_a_hidden_object_lies_apart_and_its_arms_camera_does_not_show_it_until_the_next_episode():
    env = make(64, hold_out=0.5, episode_length=3)
    hidden = env.task.memory["hidden"].clone()
    places = env.sim.data.xpos[:, env.task.bodies]
    for i, place in enumerate(HIDDEN):
        assert torch.allclose(places[hidden[:, i], i, :2].double(), torch.tensor(place).double())
        assert (places[~hidden[:, i], i, 1] < 0.31).all()
    seen = torch.stack([pixels(env, ("socket", "peg")[i])[:, i] for i in (0, 1)], dim=1)
    assert (seen[hidden] == 0).all() and (seen[~hidden] > 0).float().mean() > 0.9
    for _ in range(3):
        step(env)
    assert (env.task.memory["hidden"] != hidden).any()


def test_where_an_object_is_hidden_there_is_no_success_and_closing_its_hand_grasps_the_air():
    env = make(3, hold_out=1.0)
    env.task.memory["hidden"][0] = False
    peg = env.sim.data.qpos[:, 16:19].clone()
    env.sim.data.qpos[:, 19:23] = torch.tensor([1.0, 0.0, 0.0, 0.0]).double()
    env.sim.data.qpos[:, 23:26] = peg
    env.sim.data.qpos[:, 26:30] = torch.tensor([0.0, 0.0, 0.0, 1.0]).double()
    env.sim.forward()
    assert (env.task.distance(env.sim) < 0.01).all()
    assert env.task.success(env.sim).tolist() == [True, False, False]
    env.sim.data.ctrl[2, 13] = 0.002
    metrics = env.task.step_metrics(env.sim)
    assert metrics["hidden"].tolist() == [0.0, 1.0, 1.0]
    assert metrics["grasps_air"].tolist() == [0.0, 0.0, 1.0]


# How everything looks.


def test_each_wrist_camera_shows_what_its_hand_is_to_pick():
    env = make(256)
    for i, name in enumerate(("socket", "peg")):
        seen = pixels(env, name)[:, i]
        assert (seen >= 4).float().mean() > 0.9, (name, seen.sort().values[:20])


def test_no_camera_looks_at_its_own_housing_however_it_is_moved():
    env = seeing(64)
    for name, image in env.cameras.render().items():
        if name.endswith("depth"):
            near = (image < 0.03).float().flatten(1).mean(dim=1)
            assert near.max() < 0.5


def test_looks_are_within_the_published_ranges_and_of_each_reset():
    env = make(200)
    model, params = env.model, env.sim.params

    def colors(name):
        return params.geom_rgba[:, model.geom(name).id, :3]

    walls = torch.stack([colors(f"socket_{w}") for w in ("bottom", "top", "left", "right")], dim=1)
    blue, rest = walls[..., 2], walls[..., :2]
    assert 0.5 <= blue.min() < 0.52 and 0.98 < blue.max() <= 1.0
    assert 0.0 <= rest.min() < 0.01 and 0.11 < rest.max() <= 0.12
    assert (blue[:, :1] != blue[:, 1:]).any(dim=1).all()  # each wall has its own
    for name in ("peg", "socket_back"):
        red, rest = colors(name)[:, 0], colors(name)[:, 1:]
        assert 0.0 <= red.min() < 0.05 and 0.95 < red.max() <= 1.0
        assert 0.0 <= rest.min() < 0.01 and 0.06 < rest.max() <= 0.07
    table = colors("table")
    assert (table == table[:, :1]).all() and table.min() >= 0.0 and 0.09 < table.max() <= 0.1
    for camera in CAMERAS:
        i = model.camera(camera).id
        moved = (params.cam_pos[:, i] - torch.from_numpy(model.cam_pos[i])).abs().amax(dim=0)
        most = torch.tensor([0.0125, 0.005, 0.005])
        assert ((moved > 0.9 * most) & (moved <= most + 1e-6)).all()
        turned = (params.cam_quat[:, i] * torch.from_numpy(model.cam_quat[i])).sum(dim=1).abs()
        angle = math.degrees(2 * torch.acos(turned.clamp(max=1.0)).max())
        assert 4.5 < angle <= 5.01
    for side in description.SIDES:
        i = model.light(f"{side}_spot").id
        moved = (params.light_pos[:, i] - torch.from_numpy(model.light_pos[i])).abs()
        assert 0.95 < moved.max() <= 1.0 + 1e-6
    top = model.light("top").id
    cosine = params.light_dir[:, top].double() @ torch.from_numpy(model.light_dir[top])
    assert 9.0 < math.degrees(torch.acos(cosine.clamp(max=1.0)).max()) <= 10.1
    before = params.geom_rgba.clone()
    env.reset()
    assert (params.geom_rgba != before).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("visual", [True, False])
def test_images_of_one_state_differ_only_if_looks_are_randomised(visual):
    env = seeing(3, visual_randomization=visual)
    env.sim.data.qpos[:] = env.sim.data.qpos[:1].clone()
    env.sim.forward()
    for image in env.cameras.render().values():
        assert torch.equal(image[0], image[1]) is not visual


def test_the_numbers_of_the_distillation_are_the_published_ones_but_for_what_is_kept():
    cfg, _, _ = compose_train(["task=aloha_peg_insertion_student"])
    algo = cfg.algo
    assert (algo.name, algo.beta_iterations, algo.epochs, algo.minibatch_size) == (
        *("distill", 1, 10, 256),  # published are 4 passes over fresh samples, without a buffer
    )
    assert (algo.replay_capacity, algo.teacher, cfg.task.pick_policy) == (400_000, "expert", "")
    assert cfg.num_envs * algo.horizon == 6144 and algo.learning_rate == 4e-4 and cfg.stagger
    assert algo.max_depth == dict.fromkeys(CAMERAS, 0.4) and algo.depth_pixels == 8
    augment = dataclasses.asdict(algo.augment)
    assert augment["shift"] == 2 and augment["brightness"] == [0.5, 2.5]
    assert augment["depth_lines"] == 16 and augment["depth_line_value"] == [0.08, 0.34]
    assert (augment["depth_dropout"], augment["depth_blackout"]) == (0.006, 0.02)
