"""Gaiting or jiggling: the figures of made-up motions, and of a hand that holds still."""

import json
import math
import pathlib

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.train.evaluate import evaluate
from scripts import inspect_spin
from tasks.pen import shapes
from tasks.pen.spin import PenSpin

DT, SUBSTEPS = 0.05, 10
TIME = DT / SUBSTEPS * torch.arange(40 * SUBSTEPS + 1, dtype=torch.float64)  # 2 s
TEACHER = pathlib.Path(__file__).parents[3] / "outputs" / "pretrained" / "panda_lift_cube"


def figures(*turns):
    """The figures of episodes of 2 s with these turns at TIME."""
    return inspect_spin.rotation([t.diff().view(40, SUBSTEPS) for t in turns], DT)


def test_pure_rotation_is_efficient_and_slow_in_the_spectrum():
    found = figures(0.25 * TIME)
    assert found["rate"] == pytest.approx(math.pi / 2) == found["absolute_rate"]
    assert found["efficiency"] == pytest.approx(1.0) == found["efficiency_physics"]
    assert found["fast_power"] < 1e-9
    assert found["spell"] == pytest.approx(2.0)


def test_jiggling_at_five_times_a_second_keeps_nothing_at_either_rate():
    found = figures(0.01 * torch.sin(2 * math.pi * 5.0 * TIME + 0.1))
    assert abs(found["efficiency"]) < 1e-6 and abs(found["efficiency_physics"]) < 1e-6
    assert found["absolute_rate"] > 0.5 > abs(found["rate"])
    assert found["spell"] == pytest.approx(0.1)  # two of the four control steps of a period


def test_vibration_is_seen_at_the_physics_rate_alone():
    rotation, vibration = 0.25 * TIME, 0.01 * torch.sin(2 * math.pi * 40.0 * TIME)
    found = figures(rotation + vibration)  # two periods in a control step
    assert found["efficiency"] == pytest.approx(1.0)
    assert found["efficiency_physics"] < 0.5
    # of squared speeds: 0.25^2 against half of what the discrete sine's slope is at most
    slope = 2 * 0.01 * math.sin(math.pi * 40.0 * DT / SUBSTEPS) / (DT / SUBSTEPS)
    assert found["fast_power"] == pytest.approx(1 / (1 + 2 * 0.25**2 / slope**2), abs=1e-6)


def test_spells_end_where_the_pen_goes_back():
    there_and_back = torch.where(TIME < 1.5, TIME, 3.0 - TIME)
    found = figures(0.1 * there_and_back, 0.1 * TIME)
    assert found["spell"] == pytest.approx(1.75) and found["longest_spell"] == pytest.approx(2.0)
    assert found["efficiency"] == pytest.approx((1.0 + 2.0) / 4.0)


def test_a_finger_lifts_when_it_was_in_touch_and_then_clear():
    gap = torch.full((8, 4), 0.01)
    gap[:, 0] = torch.tensor([0.0, 0.0, 0.001, 0.0, 0.003, 0.003, 0.0, 0.003])  # twice
    gap[:, 1] = 0.001  # neither in touch nor clear
    gap[1:, 2] = 0.0  # comes and stays
    qpos = torch.zeros(8, 16)
    qpos[3, 4], qpos[4, 5] = 0.2, -0.6  # two joints of the middle finger
    found = inspect_spin.fingers([gap], [qpos], DT)
    assert [f["touch"] for f in found.values()] == pytest.approx([4 / 8, 0, 7 / 8, 0])
    assert [f["lifts"] for f in found.values()] == pytest.approx([2 / (8 * DT), 0, 0, 0])
    assert [f["joint_range"] for f in found.values()] == pytest.approx([0, 0.2, 0, 0])


def test_distance_from_a_cylinder_by_hand():
    axis, size = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.1, 0.5, 9.0]])
    points = torch.tensor([[0, 0, 0], [0.2, 0, 0.3], [0.7, 0.05, 0], [-0.8, 0.5, 0]])
    found = shapes.distance(points[None] + 1.0, torch.ones(1, 3), axis, size)
    assert found[0].tolist() == pytest.approx([0.0, 0.2, 0.2, 0.5])


def test_watching_changes_nothing_and_sees_the_evaluations_turns():
    def make():
        return Env(PenSpin(PenSpin.Config(episode_length=12)), 3, seed=5)

    def act(td):
        return torch.zeros(3, 16)

    report = inspect_spin.inspect(make(), act, seed=5)
    result = evaluate(make(), act, seed=5)
    assert report["seconds"] == pytest.approx(result.episode_len * DT)
    assert report["turns"] == result.record.values["turns"].mean().item()
    turns = report["rate"] * report["seconds"] / (2 * math.pi)
    assert turns == pytest.approx(report["turns"], abs=1e-3)  # small steps against large ones
    assert report["fingers"]["thumb"]["touch"] > 0.5


def test_a_task_without_a_pen_is_refused(capsys):
    with pytest.raises(SystemExit):
        inspect_spin.main([str(TEACHER), "device=cpu", "--episodes", "1", "--json"])
    assert "PandaLiftCube has no pen to spin" in capsys.readouterr().err


def test_the_report_is_a_table_for_people_and_numbers_for_programs(capsys, monkeypatch):
    env = Env(PenSpin(PenSpin.Config(episode_length=4)), 2, seed=5)
    report = inspect_spin.inspect(env, lambda td: torch.zeros(2, 16), seed=5)
    inspect_spin.show(report)
    said = capsys.readouterr().out
    assert said.startswith("2 episodes of 0.2 s") and len(said.splitlines()) == 10
    assert json.loads(json.dumps(report)) == report
