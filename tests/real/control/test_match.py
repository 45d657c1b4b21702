"""Whether a policy is for a robot, on every path that lets one move something."""

import dataclasses
import json
import pathlib

import numpy as np
import onnx
import pytest

from penspin_style.data.dataset import windows
from penspin_style.data.episodes.episode import (
    Episode,
    EpisodeError,
    Header,
    episodes,
    write_episode,
)
from penspin_style.deploy.bundle import CARD_KEY, Bundle
from penspin_style.features import Feature, Input
from real.control.loop import Loop, PolicySource
from real.control.match import MismatchError, check_commands, check_policy
from real.control.safety import SafeRobot
from real.control.success import SuccessCheck
from real.replay import replay
from real.serving.server import PolicyServer
from tests.support.cart import CHANNELS, DT, Carts, Script, card
from tests.support.episodes import columns, vector_card
from tests.support.replays import carts_opened, trajectory
from tests.support.terminal import call, check_refusal

ROOT = pathlib.Path(__file__).parents[3]
ONNX = ROOT / "outputs/pretrained/panda_lift_cube/policy.onnx"
TWIN = """
task: panda_lift_cube
measured: [{feature: tcp_pos}, {feature: gripper, scale: 25.0}]
"""


def other(**changes):
    """The card of the carts' policy with another second channel."""
    return dataclasses.replace(
        card(), actions=(CHANNELS[0], dataclasses.replace(CHANNELS[1], **changes))
    )


def reading(feature):
    return dataclasses.replace(card(), inputs=(Input("state", (feature,)),))


DIFFERENT = [
    (dataclasses.replace(card(), control_dt=2 * DT), "acts every 0.1 s, the robot every 0.05 s"),
    (other(name="wheel"), "commands ['left', 'wheel'], the robot takes ['left', 'right']"),
    (other(unit="cm"), "right: the policy has unit cm, the robot m"),
    (other(mode="absolute"), "right: the policy has mode absolute, the robot delta"),
    (other(scale=0.2), "right: the policy has scale 0.2, the robot 0.1"),
    (other(low=-2.0), "right: the policy has low -2.0, the robot -1.0"),
    (other(high=0.5), "right: the policy has high 0.5, the robot 1.0"),
    (reading(Feature("place", (3,), "m")), "place: the policy was trained with shape (3,)"),
    (reading(Feature("place", (2,), "mm")), "place: the policy was trained with unit mm"),
    (reading(Feature("speed", (2,), "m/s")), "speed: not offered"),
]


@pytest.mark.parametrize(("wrong", "complaint"), DIFFERENT)
def test_whatever_differs_is_named_and_nothing_moves(wrong, complaint):
    carts, policy = Carts(), Script([(1, 0)])
    check_policy(policy.card, carts)
    policy.card = wrong
    with pytest.raises(MismatchError) as caught:
        check_policy(wrong, carts)
    assert complaint in str(caught.value)
    loop = Loop(SafeRobot(carts), PolicySource(policy), SuccessCheck(), realtime=False)
    with pytest.raises(MismatchError):
        loop.run(1)
    assert carts.told == []


def test_every_difference_is_named_and_a_rounding_is_none():
    wrong = dataclasses.replace(other(unit="cm", scale=0.2), control_dt=0.1)
    with pytest.raises(MismatchError) as caught:
        check_commands(wrong, Carts())
    assert str(caught.value).count(";") == 2
    check_commands(other(scale=0.1 * (1 + 1e-9), low=-1.0 + 1e-12), Carts())


# On every path.


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "cube.yaml"
    path.write_text(TWIN)
    return str(path)


def changed_onnx(path, change):
    """The shipped policy with another card."""
    model = onnx.load(ONNX)
    (entry,) = (p for p in model.metadata_props if p.key == CARD_KEY)
    said = json.loads(entry.value)
    change(said)
    entry.value = json.dumps(said)
    onnx.save(model, path)
    return path


def slower(said):
    said["control_dt"] = 0.1


def larger(said):
    said["actions"][0]["scale"] = 0.1


def wider(said):
    said["actions"][1]["high"] = 0.5


CHANGES = [
    (slower, "the policy acts every 0.1 s, the robot every 0.05 s"),
    (larger, "tcp_x: the policy has scale 0.1, the robot 0.025"),
    (wider, "tcp_y: the policy has high 0.5, the robot 0.25"),
]


@pytest.mark.parametrize(("change", "complaint"), CHANGES)
def test_a_roll_out_of_a_policy_for_another_robot_is_refused(
    twin_file, tmp_path, capsys, change, complaint
):
    path = changed_onnx(tmp_path / "policy.onnx", change)
    line = f"rollout --robot {twin_file} --episodes 1 --out {tmp_path / 'out'}"
    check_refusal(call(f"{line} --policy {path}"), *capsys.readouterr(), 2, complaint)
    with PolicyServer(Bundle.load(path), port=0) as server:
        for how in ("--fast", "--realtime"):
            got = call(f"{line} --server {server.url} {how}")
            check_refusal(got, *capsys.readouterr(), 2, complaint)
    got = call(f"twin {twin_file} {path} --episodes 1")
    check_refusal(got, *capsys.readouterr(), 2, complaint)
    assert not (tmp_path / "out").exists()


def test_a_teacher_makes_trajectories_for_its_own_robot_only(twin_file, tmp_path, capsys):
    line = f"replay make {ONNX} {tmp_path / 'made'} --robot {twin_file} --episodes 1 --num-envs 1"
    got = call(f"{line} task.control_dt=0.1")
    check_refusal(got, *capsys.readouterr(), 2, "acts every 0.05 s, the robot every 0.1 s")
    got = call(f"{line} task.move_scale=0.05")
    check_refusal(got, *capsys.readouterr(), 2, "tcp_x: the policy has scale 0.025, the robot 0.05")
    assert not episodes(tmp_path / "made")


def test_a_trajectory_of_a_card_with_other_channels_is_refused(tmp_path):
    found = replay.load(trajectory(tmp_path))
    opened = carts_opened()
    for wrong, complaint in ((other(scale=0.2), "scale 0.2"), (other(unit="cm"), "unit cm")):
        plan = replay.Plan([dataclasses.replace(found, card=wrong)])
        with pytest.raises(MismatchError, match=f"right: the policy has {complaint}"):
            replay.repeat(opened, plan, SuccessCheck(), quiet=True)
    without = dataclasses.replace(found, card=None, unit="cm")  # of somebody else, without a card
    with pytest.raises(MismatchError, match=r"has targets in \[cm\], the robot takes \[m\]"):
        replay.repeat(opened, replay.Plan([without]), SuccessCheck(), quiet=True)
    assert opened.robot.told == []


def test_what_is_learned_from_has_the_policys_units_in_every_channel(tmp_path):
    mine = vector_card()
    mixed = dataclasses.replace(
        mine, actions=(dataclasses.replace(mine.actions[0], unit="m"), *mine.actions[1:])
    )
    head = Header.of_card(mixed, source="twin", robot="toy")
    episode = Episode.open(write_episode(tmp_path, head, columns(mixed), True))
    assert len(windows(episode, mixed))
    degrees = tuple(
        dataclasses.replace(a, unit="deg") if a.unit == "rad" else a for a in mixed.actions
    )
    with pytest.raises(EpisodeError, match=r"has mf in \[rad\], the policy commands \[deg\]"):
        windows(episode, dataclasses.replace(mixed, actions=degrees))
    scales = tuple(dataclasses.replace(a, scale=2 * a.scale) for a in mixed.actions)
    halved = windows(episode, dataclasses.replace(mixed, actions=scales))  # labels are made anew
    assert np.abs(halved.labels[1:]).max() <= 0.5
