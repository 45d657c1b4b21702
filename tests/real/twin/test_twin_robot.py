"""Twins: the training's own physics where nothing is changed, and by hand where something is."""

import dataclasses
import threading

import numpy as np
import pytest
import torch

from penspin_style.deploy.actions import Decoder
from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.sim.perturb import Perturbation
from penspin_style.train.compose import UsageError
from penspin_style.train.evaluate import evaluate
from real.robot import RobotError, StoppedError
from real.twin.batch_twin import BatchTwin
from real.twin.config import Measured
from real.twin.evaluate import evaluate_on_twins
from real.twin.robot import SimRobot, TwinConfig, load_twin, twin_names
from tests.support.rail import H, substeps
from tests.system.test_plain_yaml import BOMB

RAIL = TwinConfig("tests.support.rail")
DT = 0.05


class Formula:
    """A policy of one line."""

    def __init__(self, card, act=None):
        self.card, self.act = card, act

    def reset(self):
        pass


def rail(**changes):
    robot = SimRobot(dataclasses.replace(RAIL, **changes))
    robot.connect()
    robot.reset()
    return robot


def place(robot):
    return robot.observe().values["place"][0]


def true_place(robot):
    return robot.batch.sim.data.qpos[0, 0].item()


# The training's physics.


def env_of(name, num_envs, seed, **config):
    kind = load_task(name)
    return Env(kind(kind.Config(**config)), num_envs, seed=seed, nthread=1)


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


def test_an_episode_that_fell_counts_no_further():
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


# Real time.


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr("real.twin.robot.time.monotonic", lambda: self.now)


def test_in_real_time_the_world_goes_on_by_itself(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True)
    assert robot.clock() == 1000.0
    robot.command(np.array([0.1]))
    assert true_place(robot) == 0.0  # no time has passed
    clock.now += 0.025  # two whole physics steps
    assert place(robot) == pytest.approx(substeps(0.0, 0.0, 0.1, 2)[0])
    assert robot.observe().stamp == pytest.approx(1000.02)
    clock.now += 0.195  # 22 in all: no command comes, the last one goes on
    assert place(robot) == pytest.approx(substeps(0.0, 0.0, 0.1, 22)[0])
    robot.command(np.array([0.2]))
    clock.now += 0.03
    x, v = substeps(0.0, 0.0, 0.1, 22)
    assert place(robot) == pytest.approx(substeps(x, v, 0.2, 3)[0])


def test_in_real_time_a_measurement_is_late_by_physics_steps(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True, observation_latency=0.03)
    robot.command(np.array([0.1]))
    clock.now += 0.081
    seen = robot.observe()
    assert seen.values["place"] == pytest.approx([substeps(0.0, 0.0, 0.1, 5)[0]])
    assert seen.stamp == pytest.approx(1000.05)


def test_a_stopped_twin_comes_to_rest_by_damping_alone(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True)
    robot.command(np.array([0.125]))
    clock.now += 0.05
    robot.stop()
    x, v = substeps(0.0, 0.0, 0.125, 5)
    clock.now += 0.1
    for _ in range(10):
        v = v / (1.0 + H * 40.0)
        x += H * v
    assert place(robot) == pytest.approx(x, abs=1e-6)
    assert v < 0.05


def test_a_world_that_nobody_asked_for_catches_up_five_seconds_at_most(monkeypatch):
    clock = Clock(monkeypatch)
    robot = rail(realtime=True)
    clock.now += 3600.0
    robot.hold()
    assert robot.batch.time == pytest.approx(5.0)
    assert robot.observe().stamp == pytest.approx(clock.now)


def test_threads_share_a_twin():
    robot, errors = rail(realtime=True), []

    def hold():
        try:
            for _ in range(200):
                robot.hold()
                robot.observe()
        except Exception as error:
            errors.append(error)

    others = [threading.Thread(target=hold) for _ in range(3)]
    for thread in others:
        thread.start()
    for _ in range(200):
        robot.command(np.array([0.1]))
    for thread in others:
        thread.join()
    assert errors == [] and np.isfinite(place(robot))


# Descriptions.


def test_the_twins_that_come_with_us_can_be_built():
    assert {"pen", "pen_shifted", "panda", "panda_shifted"} <= {*twin_names()}
    for name in twin_names():
        config = load_twin(name)
        assert config.summary
        # without its images, which take long to prepare
        images = [f for f in config.features if f.endswith(("_rgb", "_depth"))]
        few = () if config.task.startswith("pen") else ("tcp_pos", "gripper")
        batch = BatchTwin(dataclasses.replace(config, features=few), 2)
        batch.reset()
        batch.command(batch.target)
        assert not images and np.isfinite(batch.observe().measured).all()


WHOLE = "task: panda_lift_cube\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "there is no twin"),
        ("a: [", "not readable"),
        ("- 1", "must be a mapping with a task"),
        (WHOLE + "overrides: ['name=${oc.env:HOME}']", r"overrides has \$\{...\}: write the value"),
        (WHOLE + "task: pen_spin", "the key 'task' for the second time"),
        (BOMB + WHOLE, r"line 2 has an alias"),
        ("task: idlelib.idle", "'idlelib.idle', which is not registered; if you trust"),
        ("task: [pen_spin]", r"\['pen_spin'\], which is not registered"),
        (WHOLE + "words: []\noverrides: []", "'words' is the former name of 'overrides'"),
        (WHOLE + "prturb: []", "unknown key 'prturb'; did you mean perturb?"),
        (WHOLE + "perturb: [{field: body_mass, value: .nan}]", "value must be finite"),
        (WHOLE + "perturb: [{fild: body_mass}]", "fild"),
        (WHOLE + "command_latency: -1", r"command_latency must be in \[0, 10\)"),
        (WHOLE + "state_drop: 1", r"state_drop must be in \[0, 1\)"),
        (WHOLE + "noise: {place: -1}", "noise.place must be finite"),
        (WHOLE + "bias: {place: .inf}", "bias.place must be finite"),
        (WHOLE + "noise: 3", "noise"),
        (WHOLE + "command_latency: soon", "command_latency"),
        (WHOLE + "perturb: 3", "perturb must be a list"),
    ],
)
def test_an_invalid_description_is_refused(tmp_path, text, complaint):
    path = tmp_path / "twin.yaml" if text else "pan"
    if text:
        path.write_text(text)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_twin(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"task": "tests.real.rails"}, "there is no task"),
        ({"overrides": ("task.lenght=1",)}, "unknown key"),
        ({"features": ("palce",)}, "observes no 'palce'; did you mean place"),
        ({"noise": {"speed": 0.1}}, "noise.speed: the twin has no such feature"),
        ({"bias": {"place": [1.0, 2.0]}}, r"bias.place has 2 numbers, the feature is \(1,\)"),
        ({"offset": {"zeros": 1.0}}, "offset.zeros: the task has no such"),
        ({"offset": {"zero": [1.0, 2.0]}}, r"offset.zero must have \(1,\) numbers"),
        ({"perturb": (Perturbation("body_mass", "car"),)}, "no name matches 'car'"),
        ({"measured": (Measured("place"), Measured("place"))}, "gives 2 numbers for 1 channels"),
        ({"task": "panda_lift_cube"}, "are no joints; say in `measured`"),
    ],
)
def test_a_twin_that_cannot_be_built_says_why(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        BatchTwin(dataclasses.replace(RAIL, **changes))


def card_of(feature=None, channels=None, control_dt=DT):
    feature = feature or Feature("place", (1,), "m", history=2, delay=1)
    channels = channels or BatchTwin(RAIL).channels
    return PolicyCard("t", (Input("student", (feature,)),), channels, (), control_dt)


def test_a_twin_of_a_task_that_the_user_names_is_read(tmp_path):
    path = tmp_path / "twin.yaml"
    path.write_text("task: tests.support.rail\n")
    assert load_twin(path, trusted=["tests.support.rail"]) == RAIL


def test_a_file_with_the_former_keys_is_the_same_twin(tmp_path):
    row = "[{field: body_mass, names: box, value: 0.3, operation: abs}]"
    said = {
        "new": f"overrides: [task.randomize=false]\nperturb: {row}",
        "old": f"words: [task.randomize=false]\nshift: {row}",
    }
    for name, text in said.items():
        (tmp_path / f"{name}.yaml").write_text(f"task: panda_lift_cube\n{text}\n")
    new, old = (load_twin(tmp_path / f"{name}.yaml") for name in said)
    assert new == old and new.overrides == ("task.randomize=false",)
    assert new.perturb == (Perturbation("body_mass", "box", 0.3, "abs"),)


def test_a_policy_is_evaluated_in_closed_loop_on_many_twins():
    """It moves on while it sees itself before 0.6 m, half a control step and one step late."""
    config = dataclasses.replace(RAIL, overrides=("task.start=0.4",))
    episodes = evaluate_on_twins(
        config,
        Formula(card_of(), lambda inputs: np.where(inputs["student"][:, 1:] < 0.6, 0.5, 0.0)),
        episodes=20,
        seed=1,
    )
    measures = episodes.measures()
    assert measures["success"].mean == 1.0 and measures["survival"].mean == 1.0
    assert episodes.steps.tolist() == [20.0] * 20
    assert measures["way"].mean == pytest.approx(0.7, abs=0.15)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"feature": Feature("place", (2,), "m")}, r"place: .* shape \(2,\), the robot has \(1,\)"),
        ({"feature": Feature("place", (1,), "mm")}, "place: .* unit mm, the robot has m"),
        ({"feature": Feature("camera", (1,), "m")}, "camera: not offered"),
        ({"control_dt": 0.1}, r"every 0\.1 s, the robot every 0\.05 s"),
    ],
)
def test_a_policy_for_another_robot_is_not_evaluated(fields, complaint):
    with pytest.raises(RobotError, match=complaint):
        evaluate_on_twins(RAIL, Formula(card_of(**fields)), episodes=1, seed=0)


def test_channels_in_another_order_are_refused():
    (rail_channel,) = BatchTwin(RAIL).channels
    other = dataclasses.replace(rail_channel, name="wheel")
    for channels, complaint in (
        ((other,), "commands \\['wheel'\\], the robot takes \\['rail'\\]"),
        ((dataclasses.replace(rail_channel, unit="cm"),), "unit cm, the robot m"),
        ((dataclasses.replace(rail_channel, mode="absolute"),), "mode absolute"),
        ((dataclasses.replace(rail_channel, scale=0.25),), r"scale 0\.25, the robot 0\.125"),
        ((dataclasses.replace(rail_channel, high=2.0),), r"high 2\.0, the robot 1\.0"),
    ):
        with pytest.raises(RobotError, match=complaint):
            evaluate_on_twins(RAIL, Formula(card_of(channels=channels)), episodes=1, seed=0)
