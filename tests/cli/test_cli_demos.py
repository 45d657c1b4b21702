"""`penspin demos`: what it records and prints, that it goes on where it was, what it refuses."""

import json

import pytest
import torch

from penspin_style.algo.search.trajectory import replay
from penspin_style.cli import demos
from penspin_style.data.trajectory import read_trajectory
from penspin_style.env.start_bank import read_bank
from penspin_style.env.world import World
from penspin_style.system.interrupt import Stop
from penspin_style.train.compose_search import compose_demos
from tests.support import toy
from tests.support.terminal import call, check_refusal

TOY = "demos tests.support.toy sim.nthread=1 task.episode_length=70"
REFUSED = {
    "demos": "the following arguments are required: TASK",
    "demos task=tests.support.toy": "the following arguments are required: TASK",
    "demos tests.support.toy task=pen_spin": "'pen_spin' beside the task tests.support.toy",
    "demos tests.support.toy num_envs=3": "'num_envs=3': demonstrations take task.KEY, sim.KEY",
    "demos aloha_pck": "did you mean aloha_pick?",
    "demos tests.support.toy task.clse=1": "did you mean task.close?",
    "demos tests.support.toy seed=-1": "seed must be >= 0",
    "demos tests.support.toy --count 0": "--count: '0' is not a whole number of at least 1",
    "demos pen_spin": "pen_spin has no scripted expert (Task.expert); penspin search",
    "demos tests.support.toy --out file.txt": "--out file.txt: cannot write there",
    "demos tests.support.toy --out other": "other holds demonstrations with ",
    "demos tests.support.toy --bank other": "--bank other: exists already; name a new folder",
}


class Pusher:
    """Push towards the middle, and brake."""

    def __init__(self, task, sim):
        self.sim, self.restarts = sim, 0

    def restart(self, mask, rng):
        self.restarts += 1

    def act(self):
        data = self.sim.data
        return (-5.0 * data.qpos - 0.5 * data.qvel).clamp(-1.0, 1.0).float()


@pytest.fixture(autouse=True)
def expert(monkeypatch):
    monkeypatch.setattr(toy.Cart, "expert", lambda self, sim: Pusher(self, sim))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("task_name: pen_spin\nseed: 3\n")
    return tmp_path


@pytest.mark.parametrize("line", REFUSED)
def test_an_invalid_demos_exits_with_2_and_one_line_and_leaves_nothing(line, here, capfd):
    before = sorted(here.rglob("*"))
    check_refusal(call(line), *capfd.readouterr(), 2, REFUSED[line])
    assert sorted(here.rglob("*")) == before


def test_the_expert_is_recorded_and_summed_up_and_not_recorded_again(here, capfd, monkeypatch):
    assert call(f"{TOY} --count 3 --out found") == 0
    out, _ = capfd.readouterr()
    assert "3 trajectories in found" in out and "success 100%" in out
    assert len(list((here / "found").glob("00*.safetensors"))) == 3
    monkeypatch.setattr(demos, "demonstrate", lambda *a, **k: pytest.fail("recorded again"))
    assert call(f"{TOY} --count 3 --out found --json") == 0
    said = json.loads(capfd.readouterr().out)
    assert said["success"] == 1.0 and [row["index"] for row in said["trajectories"]] == [0, 1, 2]
    assert call(f"{TOY} task.close=0.2 --out found") == 2  # another task's numbers
    assert "found holds demonstrations with task.close=0.1, not 0.2" in capfd.readouterr().err


def test_a_recorded_trajectory_replays_bit_for_bit(here):
    assert call(f"{TOY} seed=5 --count 2 --out found") == 0
    for index in (0, 1):
        trajectory = read_trajectory(here / "found" / f"00{index}.safetensors")
        card = trajectory.card
        assert (card["task"], card["method"], card["seed"]) == ("tests.support.toy", "expert", 5)
        assert card["score"]["success_at_end"] == 1.0 and not card["terminated"]
        cfg, task, _ = compose_demos("tests.support.toy", ["sim.nthread=1"])
        again = replay(
            World(task(cfg.task), 1, seed=9, nthread=1),
            trajectory.snapshot(torch.tensor([0])),
            trajectory.action,
        )
        assert torch.equal(again.state, trajectory.state)
    first, second = (read_trajectory(here / "found" / f"00{i}.safetensors") for i in (0, 1))
    assert not torch.equal(first.state[0], second.state[0])  # each has its own start


def test_a_demonstration_ends_where_the_task_terminates_and_is_no_success(here, capfd, monkeypatch):
    monkeypatch.setattr(Pusher, "act", lambda self: torch.ones(1, 1))
    assert call(f"{TOY} --count 2 --out found --bank bank") == 2
    check_refusal(2, *capfd.readouterr(), 2, "--bank bank: none of 2 trajectories succeeded")
    trajectory = read_trajectory(here / "found" / "000.safetensors")
    assert trajectory.card["terminated"] and trajectory.steps < 70
    qpos = trajectory.state[:, 1]  # mjSTATE_INTEGRATION begins with time, qpos
    assert qpos[-1] > 1.5 and qpos[-2] <= 1.5
    assert not (here / "bank").exists()


def test_states_of_successful_demonstrations_that_hold_become_a_bank(here, capfd, monkeypatch):
    steer = Pusher.act

    def act(self):  # the first one runs off the rail
        return torch.ones(1, 1) if self.restarts == 1 else steer(self)

    monkeypatch.setattr(Pusher, "act", act)
    assert call(f"{TOY} task.start=0.1 --count 2 --out found --bank bank") == 0
    cards = [read_trajectory(p).card for p in sorted((here / "found").glob("*.safetensors"))]
    assert [card["terminated"] for card in cards] == [True, False]
    rows = read_bank(here / "bank")
    kept = read_trajectory(here / "found" / "001.safetensors").state[::12, 1]
    torch.testing.assert_close(rows[:, 0], kept.to(rows.dtype))
    assert not rows[:, 1].any()  # at rest
    card = json.loads((here / "bank" / "card.json").read_text())
    assert card["origin"] == "1 successful ones of 2 trajectories of penspin demos"


def test_a_stop_keeps_what_is_recorded_and_the_same_command_goes_on(here, capfd, monkeypatch):
    asked = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(Stop, "is_set", lambda self: next(asked))
        assert call(f"{TOY} --count 4 --out found") == 4
    assert len(list((here / "found").glob("00*.safetensors"))) == 2
    assert call(f"{TOY} --count 4 --out found") == 0
    assert len(list((here / "found").glob("00*.safetensors"))) == 4
