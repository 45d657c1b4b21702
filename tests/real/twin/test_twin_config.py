"""Descriptions of twins, and policies evaluated on many of them."""

import dataclasses

import numpy as np
import pytest

from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.sim.perturb import Perturbation
from penspin_style.train.compose import UsageError
from real.robot import RobotError
from real.twin.batch_twin import BatchTwin
from real.twin.config import Measured
from real.twin.evaluate import evaluate_on_twins
from real.twin.robot import load_twin, twin_names
from tests.support.damage import BOMB
from tests.support.rail_twin import DT, RAIL, Formula

FEW = {
    "panda_lift_cube_vision": ("tcp_pos", "gripper"),
    "aloha_peg_insertion_student": ("left_qpos", "right_qpos"),
}
"""Task -> features without images."""

# Descriptions.


def test_the_twins_that_come_with_us_can_be_built():
    kinds = ("pen", "panda", "aloha", "aloha_insertion")
    assert {name + shift for name in kinds for shift in ("", "_shifted")} <= {*twin_names()}
    for name in twin_names():
        config = load_twin(name)
        assert config.summary
        # without its images, which take long to prepare
        images = [f for f in config.features if f.endswith(("_rgb", "_depth"))]
        few = FEW.get(config.task, ())
        batch = BatchTwin(dataclasses.replace(config, features=few), 2)
        batch.reset()
        batch.command(batch.target)
        assert not images and np.isfinite(batch.observe().measured).all()


def test_the_shifted_arms_differ_from_the_training_in_what_their_file_says():
    """By hand from the published model, which the hand-over never varies."""
    ours, shifted = (BatchTwin(load_twin(name)) for name in ("aloha", "aloha_shifted"))
    for twin in (ours, shifted):
        twin.reset()

    def value(twin, field, kind, name, column=0):
        row = getattr(twin.sim.params, field)[0][getattr(twin.sim.model, kind)(name).id]
        return row[column].item() if row.ndim else row.item()

    gain = ("actuator_gainprm", "actuator", "left_shoulder")
    assert value(shifted, *gain) == pytest.approx(0.85 * 265)
    bias = ("actuator_biasprm", "actuator", "left_shoulder", 1)
    assert value(shifted, *bias) == pytest.approx(-0.85 * 265)
    grip = shifted.sim.model.actuator("right_gripper").id  # its force is left as it is
    assert shifted.sim.params.actuator_gainprm[0, grip, 0] == pytest.approx(365)
    assert value(shifted, "body_mass", "body", "box") == pytest.approx(1.5 * 0.044)
    assert value(shifted, "geom_friction", "geom", "box") == pytest.approx(0.7)
    assert value(shifted, "body_pos", "body", "right_base_link") == pytest.approx(0.473)
    assert ours.sim.model.body("right_base_link").pos[0] == pytest.approx(0.469)
    dof = shifted.sim.model.joint("left_wrist_rotate").dofadr[0]
    assert shifted.sim.params.dof_frictionloss[0, dof] == pytest.approx(0.3)
    assert shifted.sim.params.dof_damping[0, dof] == pytest.approx(1.2 * 1.2)


def test_the_arms_that_insert_begin_at_their_commands_without_noise_and_with_both_objects():
    config = dataclasses.replace(load_twin("aloha_insertion"), features=("left_qpos",))
    batch = BatchTwin(config, 40)
    batch.reset()
    assert batch.target == pytest.approx(batch.sim.data.ctrl.numpy(), abs=1e-6)
    seen = batch.observe().values["left_qpos"]
    assert seen[:, :6] == pytest.approx(batch.sim.data.qpos[:, :6].numpy(), abs=1e-6)
    assert not batch.task.memory["hidden"].any()


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
