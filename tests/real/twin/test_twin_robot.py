"""Twins: the training's own physics where nothing is changed, and by hand where something is."""

import dataclasses
import pathlib

import numpy as np
import pytest
import torch

from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.bundle import Bundle
from penspin_style.env.task import load_task
from penspin_style.features import Feature
from penspin_style.sim.perturb import Perturbation
from penspin_style.train.evaluate import evaluate
from real.robot import RobotError, StoppedError
from real.twin.batch_twin import BatchTwin
from real.twin.config import Measured
from real.twin.evaluate import evaluate_on_twins
from real.twin.robot import SimRobot, load_twin
from tests.support.rail import H, substeps
from tests.support.rail_twin import DT, RAIL, Formula, env_of, place, rail, true_place

PRETRAINED = pathlib.Path(__file__).parents[3] / "outputs" / "pretrained"


@pytest.mark.parametrize(
    ("twin", "features"), [("pen", ("proprio", "fingertips")), ("panda", ("tcp_pos", "gripper"))]
)
def test_a_twin_repeats_the_environment_bit_for_bit(twin, features):
    """With all the training's randomisation and noise: same actions, same qpos, tolerance 0."""
    config = load_twin(twin, features=features, seed=5)
    robot = SimRobot(config)
    robot.connect()
    # without images, which take long, and the lateness of the Panda's student, which is drawn
    groups = load_task(config.task).Config().observation
    seen = {
        k: {n: t for n, t in g.items() if "_rgb" not in n and "_depth" not in n}
        for k, g in groups.items()
    }
    env = env_of(config.task, 1, 5, latency={}, observation=seen)
    decoder, rng = Decoder(robot.channels), np.random.default_rng(0)
    for episode in range(2):
        robot.reset()
        td = env.current() if episode == 0 else env.reset()
        for step in range(40):
            seen, terms = robot.observe(), env.task.observe(env.sim)
            for name in features:
                assert np.array_equal(seen.values[name], terms[name][0].float().numpy()), name
            # ever wilder, so that grasps fail too; beyond 1 it is clipped
            action = rng.uniform(-1, 1, len(robot.channels)).astype(np.float32) * step / 30
            robot.command(decoder.decode(action, robot.target))
            td = env.step(td.set("action", torch.from_numpy(action)[None]))["next"]
            assert torch.equal(robot.batch.sim.data.qpos, env.sim.data.qpos), (episode, step)
            assert robot.terminated == (
                td["terminated"].item() or robot.measures()["steps"] <= step
            )


def test_arms_whose_commands_are_not_where_they_are_begin_at_the_commands():
    """The hand-over's grippers are told to open at first. Its targets are float64, a robot's
    float32, and that is all by which the twin differs from the environment."""
    robot, env = SimRobot(load_twin("aloha", seed=5)), env_of("aloha_handover", 1, 5)
    robot.connect()
    robot.reset()
    decoder, rng = Decoder(robot.channels), np.random.default_rng(0)
    assert robot.target[6] == 0.037 and robot.observe().measured[6] == pytest.approx(0.0305)
    td = env.current()
    # shut the grippers as far as they go, and beyond: a target that began where the fingers were
    # would be at the limit before the environment's
    for step in range(60):
        action = rng.uniform(-1, 1, 14).astype(np.float32)
        action[[6, 13]] = -1.0 if step < 30 else 1.0
        robot.command(decoder.decode(action, robot.target))
        td = env.step(td.set("action", torch.from_numpy(action)[None]))["next"]
        mine, theirs = robot.batch.sim.data, env.sim.data
        assert (mine.ctrl - theirs.ctrl).abs().max() < 1e-6, step
        assert (mine.qpos - theirs.qpos).abs().max() < 1e-6, step
    np.testing.assert_allclose(robot.target, mine.ctrl[0].numpy(), rtol=0, atol=1e-6)


def test_a_batch_of_twins_is_evaluated_as_environments_are():
    """While none falls: an evaluation then begins a new episode there, and draws for it."""
    config = {"episode_length": 40, "lowest": -9.0, "lowest_end": -9.0, "highest_end": 9.0}
    env = env_of("pen_spin_student", 6, 7, **config)
    card = env.card(
        task="t", run="", network={}, score={}, versions={}, in_keys=env.groups.reads("student")
    )
    theirs = evaluate(env, lambda td: 0.2 * td["student"][:, :16].tanh(), seed=7).record
    mine = evaluate_on_twins(
        load_twin("pen", overrides=tuple(f"task.{k}={v}" for k, v in config.items())),
        Formula(
            card, lambda inputs: 0.2 * torch.from_numpy(inputs["student"][:, :16]).tanh().numpy()
        ),
        episodes=6,
        seed=7,
    )
    assert torch.equal(mine.steps, theirs.steps) and torch.equal(mine.terminated, theirs.terminated)
    assert torch.equal(mine.kind, theirs.kind) and mine.steps.tolist() == [40.0] * 6
    for name, value in theirs.values.items():
        assert torch.equal(mine.values[name], value), name


@pytest.mark.parametrize("twin", ["pen", "pen_shifted"])
@pytest.mark.parametrize("student", ["student", "student_ends"])
def test_every_shipped_student_of_the_pen_acts_on_its_twins(twin, student):
    bundle = Bundle.load(PRETRAINED / "pen_spin" / student / "policy.onnx")
    found = evaluate_on_twins(
        load_twin(twin, overrides=("task.episode_length=3",)), bundle, episodes=2, seed=0
    )
    assert found.steps.tolist() == [3.0, 3.0]


def test_a_seed_decides_everything_from_the_next_reset_on():
    def run(robot, seed):
        robot.seed(seed)
        robot.reset()
        for _ in range(5):
            robot.command(robot.target + 0.02)
        return robot.observe().values["proprio"]

    one, two = (SimRobot(load_twin("pen_shifted", seed=s)) for s in (1, 2))
    for robot in (one, two):
        robot.connect()
        robot.reset()
    assert np.array_equal(run(one, 3), run(two, 3))
    assert not np.array_equal(run(one, 3), run(one, 4))


# Physics by hand.


def test_a_command_lets_one_control_step_pass():
    robot = rail()
    begun = robot.clock()
    sent = robot.command(np.array([0.1]))
    assert sent == pytest.approx([0.1]) and robot.target == sent
    assert robot.clock() == pytest.approx(begun + DT)
    assert true_place(robot) == pytest.approx(substeps(0.0, 0.0, 0.1, 5)[0])


def test_a_target_farther_than_an_action_reaches_is_approached_as_far_as_that():
    robot = rail()
    assert robot.command(np.array([0.9])).tolist() == [0.125]
    assert robot.command(np.array([0.9])).tolist() == [0.25]
    assert robot.command(np.array([-9.0])).tolist() == [0.125]


def test_a_late_command_acts_within_the_control_step():
    robot = rail(command_latency=0.02)
    robot.command(np.array([0.1]))
    robot.command(np.array([0.2]))
    x, v = substeps(0.0, 0.0, 0.0, 2)
    x, v = substeps(x, v, 0.1, 5)
    x, v = substeps(x, v, 0.2, 3)
    assert true_place(robot) == pytest.approx(x)
    assert robot.target == pytest.approx([0.2])


def test_a_command_later_than_a_control_step_is_not_lost():
    robot = rail(command_latency=0.08)
    for target in (0.1, 0.2, 0.3):
        robot.command(np.array([target]))
    x, v = substeps(0.0, 0.0, 0.1, 5)
    assert true_place(robot) == pytest.approx(substeps(x, v, 0.2, 2)[0])


def test_a_shifted_world_moves_by_its_own_numbers():
    robot = rail(perturb=(Perturbation("actuator_gainprm", value=0.5, column=0),))
    robot.command(np.array([0.1]))
    x, v = 0.0, 0.0
    for _ in range(5):  # half the stiffness, in both terms of the servo
        v = (v + H * 200.0 * (0.1 - x)) / (1.0 + H * 40.0)
        x += H * v
    assert true_place(robot) == pytest.approx(x)


# Sensors.


def test_a_late_measurement_is_the_one_of_then_and_says_when_it_was():
    robot = rail(observation_latency=0.08)
    begun, places, seen = robot.clock(), [0.0], []
    for step in range(5):
        seen.append(robot.observe())
        robot.command(np.array([0.1 * (step + 1)]))
        places.append(true_place(robot))
    # 0.08 s are two control steps in fast time; until then the first frame
    wanted = [places[0], places[0], places[0], places[1], places[2]]
    assert [o.values["place"][0] for o in seen] == pytest.approx(wanted)
    assert [o.stamp - begun for o in seen] == pytest.approx([0.0, 0.0, 0.0, DT, 2 * DT])


def test_a_lost_frame_repeats_the_one_before_with_its_time():
    robot = rail(state_drop=0.4, seed=3)
    last, repeats = robot.observe(), 0
    for step in range(200):
        robot.command(np.array([0.3 * np.sin(step)]))
        seen = robot.observe()
        again = robot.observe()
        assert again.stamp == seen.stamp and again.values == seen.values  # one frame, seen twice
        if seen.stamp == last.stamp:
            assert np.array_equal(seen.values["place"], last.values["place"])
            repeats += 1
        else:
            assert seen.stamp == pytest.approx(robot.clock())
            assert seen.values["place"] == pytest.approx([true_place(robot)])
        last = seen
    # five standard deviations of 200 draws of 0.4
    assert abs(repeats - 80) < 5 * (200 * 0.4 * 0.6) ** 0.5


def test_noise_and_bias_are_on_what_is_measured_not_on_what_is():
    robot = rail(noise={"place": 0.01}, bias={"place": 0.2}, measured=(Measured("place"),))
    values = []
    for _ in range(400):
        robot.command(robot.target)
        seen = robot.observe()
        assert seen.measured.tolist() == seen.values["place"].tolist()
        values.append(seen.values["place"][0])
    assert true_place(robot) == 0.0
    assert np.mean(values) == pytest.approx(0.2, abs=5 * 0.01 / 20)
    assert np.std(values) == pytest.approx(0.01, rel=5 / (2 * 400) ** 0.5)


def test_without_a_feature_for_it_joints_are_measured_as_they_are():
    robot = rail(noise={"place": 0.01})
    robot.command(np.array([0.1]))
    assert robot.observe().measured == pytest.approx([true_place(robot)])


def test_an_offset_in_the_tasks_memory_comes_back_at_every_reset():
    robot = rail(offset={"zero": [0.25]})
    for _ in range(2):
        assert (place(robot), true_place(robot)) == (0.25, 0.0)
        robot.reset()


def test_an_observation_is_the_callers_own():
    robot = rail()
    robot.observe().values["place"][:] = 7.0
    assert place(robot) == 0.0


def test_a_twin_offers_what_the_student_reads_without_its_history():
    assert SimRobot(RAIL).features == {"place": Feature("place", (1,), "m")}
    both = SimRobot(dataclasses.replace(RAIL, features=("speed", "place")))
    assert list(both.features) == ["speed", "place"]


# Starts.


def test_an_episode_begins_where_it_is_told():
    robot = rail(overrides=("task.start=0.4",))
    for start in ({"rail": np.array([0.3])}, {"qpos": np.array([0.3])}):
        robot.reset(start)
        assert place(robot) == pytest.approx(0.3)
        assert robot.target == pytest.approx([0.3])
        robot.command(robot.target)
        assert true_place(robot) == pytest.approx(0.3)


def test_a_state_is_taken_over_bit_for_bit():
    robot, other = rail(), rail()
    for _ in range(3):
        robot.command(np.array([0.2]))
    row = robot.batch.sim.get_state()[0].numpy()
    other.reset({"state": row})
    assert np.array_equal(other.batch.sim.get_state()[0].numpy(), row)


def test_a_pen_begins_in_a_given_grasp():
    robot = SimRobot("pen")
    robot.connect()
    robot.reset()
    row = robot.batch.sim.data.qpos[0].numpy().copy()
    target = robot.target
    robot.seed(99)
    robot.reset({"qpos": row})
    assert np.array_equal(robot.batch.sim.data.qpos[0].numpy(), row)
    assert np.array_equal(robot.target, target)
    memory = robot.batch.task.memory
    assert np.array_equal(memory["grasp"][0].numpy(), row[:16].astype(np.float32))
    robot.command(robot.target)
    # after a control step in the fingers the pen is where it was, to a centimetre
    assert np.abs(robot.batch.sim.data.qpos[0, 16:19].numpy() - row[16:19]).max() < 0.01


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ({"cube": np.zeros(3)}, "start has 'cube'"),
        ({"rail": np.zeros(2)}, r"must be \(1,\) finite numbers"),
        ({"rail": np.array([np.nan])}, "finite"),
        ({"state": np.zeros(1), "rail": np.zeros(1)}, "which is everything"),
    ],
)
def test_a_start_that_cannot_be_is_refused(start, complaint):
    with pytest.raises(RobotError, match=complaint):
        rail().reset(start)


# Life.


def test_a_twin_says_what_its_episode_amounts_to():
    robot = rail()
    for _ in range(30):
        robot.command(np.array([0.7]))
    said = robot.measures()
    assert said["success"] and said["survival"] and not said["terminated"] and robot.done
    # 20 control steps, though it went on
    assert said["steps"] == 20
    assert said["way"] == pytest.approx(0.7, abs=0.05)
    robot.reset()
    assert not robot.measures()["success"] and not robot.done


def test_an_episode_that_terminated_counts_no_further():
    robot = rail()
    for _ in range(15):
        robot.command(np.array([1.0]))
    said = robot.measures()
    assert robot.terminated and robot.done and said["terminated"] and not said["survival"]
    steps = said["steps"]
    assert steps < 15
    robot.command(np.array([1.0]))
    assert robot.measures() == said


def test_physics_that_fails_is_said_and_ends_the_episode():
    batch = BatchTwin(RAIL, 3)
    batch.reset()
    batch.command(np.full((3, 1), 0.1))
    batch.sim.data.qvel[1] = np.nan
    batch.command(np.full((3, 1), 0.2))
    assert batch.measures()["faulty"].tolist() == [False, True, False]
    assert batch.done.tolist() == [False, True, False]
    assert batch.measures()["success"].tolist() == [False] * 3


def test_a_stopped_twin_takes_no_commands_until_it_is_reset():
    robot = rail()
    robot.stop()
    robot.stop()
    with pytest.raises(StoppedError, match="reset"):
        robot.command(np.zeros(1))
    robot.reset()
    robot.command(np.zeros(1))


def test_nothing_works_before_a_connection_and_a_reset():
    robot = SimRobot(RAIL)
    with pytest.raises(RobotError, match="not connected"):
        robot.reset()
    robot.connect()
    for use in (robot.observe, robot.measures, lambda: robot.command(np.zeros(1))):
        with pytest.raises(RobotError, match="reset"):
            use()
    robot.disconnect()
    robot.disconnect()


@pytest.mark.parametrize("target", [np.array([np.nan]), np.zeros(2), np.array(["a"]), None])
def test_what_is_no_target_is_refused(target):
    robot = rail()
    with pytest.raises(RobotError):
        robot.command(target)
    assert true_place(robot) == 0.0
