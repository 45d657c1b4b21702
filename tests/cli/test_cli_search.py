"""`penspin search`: what it writes and prints, that it goes on where it was, what it refuses."""

import json

import pytest
import torch

from penspin_style.algo.search.trajectory import Search
from penspin_style.cli.search import summary
from penspin_style.data.trajectory import read_trajectory
from penspin_style.env.start_bank import read_bank
from penspin_style.env.world import World
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.train.compose_search import compose_search
from tests.support.terminal import call, check_refusal

TOY = (
    "search task=tests.support.toy task.randomize=false sim.nthread=1 search.beams=2 "
    "search.plans=12 search.horizon=8 search.hold=2 search.seconds=1.0"
)
REFUSED = {
    "search": "say for which task: task=NAME",
    "search num_envs=3": "'num_envs=3': a search takes task=NAME, task.KEY, sim.KEY, search.KEY",
    "search task=pen_spin algo=ppo": "'algo=ppo': a search takes",
    "search task=pen_spinn": "did you mean pen_spin?",
    "search task=pen_spin --count 0": "--count: '0' is not a whole number of at least 1",
    "search task=pen_spin --method annealing": "invalid choice: 'annealing'",
    "search task=pen_spin --method": "--method",
    "search task=pen_spin search.sgma=1": "unknown key 'search.sgma'; did you mean sigma?",
    "search task=pen_spin search.sigma": "'search.sigma' is not an override; write KEY=VALUE",
    "search task=pen_spin search.sigma=wide": "search.sigma: Value 'wide'",
    "search task=pen_spin search.sigma=nan": "search.sigma must be finite and > 0, got nan",
    "search task=pen_spin search.sigma=-1": "search.sigma must be finite and > 0, got -1",
    "search task=pen_spin search.plans=2": "search.plans must be >= 3: two are the old one and",
    "search task=pen_spin search.keep=17": "search.keep must be at most search.horizon, got 17",
    "search task=pen_spin search.seconds=0": "search.seconds must be finite and > 0",
    "search task=pen_spin search.scale_range=[2,1]": "search.scale_range must be [least, most]",
    "search task=pen_spin search.cost=3": "search.cost",
    "search task=pen_spin search.cost.tilt=inf": "search.cost.tilt must be finite, got inf",
    "search task=pen_spin search.cost.hight=1": "search.cost.hight: the task has no such term; did",
    "search task=pen_spin task.lowst=1": "did you mean task.lowest?",
    "search task=pen_spin seed=-1": "seed must be >= 0",
    "search task=pen_spin --out file.txt": "--out file.txt: cannot write there",
    "search task=pen_spin --out other": "other holds a search with ",
    "search task=pen_spin --bank other": "--bank other: exists already; name a new folder",
    "search task=pen_spin --out odd": "odd/config.yaml is unreadable",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text("task_name: pen_spin\nseed: 3\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.yaml").write_text("a: [\n")
    return tmp_path


@pytest.mark.parametrize("line", REFUSED)
def test_an_invalid_search_exits_with_2_and_one_line_and_leaves_nothing(line, here, capfd):
    before = sorted(here.rglob("*"))
    check_refusal(call(line), *capfd.readouterr(), 2, REFUSED[line])
    assert sorted(here.rglob("*")) == before


def test_noise_within_a_step_is_refused_with_what_to_do(here, capfd):
    code = call(f"{TOY} task.randomize=true --out noisy")
    check_refusal(code, *capfd.readouterr(), 2, "switch off the noise that the task draws")


def test_trajectories_are_written_summed_up_and_not_searched_for_again(here, capfd, monkeypatch):
    assert call(f"{TOY} --count 2 --out found") == 0
    out, err = capfd.readouterr()
    assert "2 trajectories in found" in out and "median success_rate 1.000" in out
    assert "2/2: success_rate 1" in err
    assert {p.suffix for p in (here / "found").glob("00*")} <= {".safetensors", ".png"}
    monkeypatch.setattr(Search, "advance", lambda self: pytest.fail("searched again"))
    assert call(f"{TOY} --count 2 --out found --json") == 0
    said = json.loads(capfd.readouterr().out)
    assert [row["index"] for row in said["trajectories"]] == [0, 1]
    assert said["success"] == said["whole"] == said["median"] == 1.0


def test_a_file_holds_all_that_a_world_needs_to_go_on_from_any_step(here, capfd):
    assert call(f"{TOY} --out found") == 0
    trajectory = read_trajectory(here / "found" / "000.safetensors")
    cfg, _, kind, _ = compose_search(TOY.split()[1:])
    world = World(kind(cfg.task), 3, nthread=1)
    world.restore(trajectory.snapshot(torch.tensor([2, 7, 11])))
    action = trajectory.action[[2, 7, 11]]
    world.begin(action)
    world.advance()
    assert torch.equal(world.sim.get_state(), trajectory.state[[3, 8, 12]])
    assert trajectory.card["task"] == "tests.support.toy"
    assert trajectory.card["method"] == "beam" and "scale_range" in trajectory.card["config"]


def test_an_interrupted_search_is_saved_and_ends_as_one_that_was_not(here, capfd, monkeypatch):
    assert call(f"{TOY} --count 2 --out whole") == 0
    advance, calls = Search.advance, []

    def interrupted(self):
        import os
        import signal

        advance(self)
        calls.append(0)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Search, "advance", interrupted)
    assert call(f"{TOY} --count 2 --out parts") == 4
    assert (here / "parts" / "000.partial").exists()
    assert not list((here / "parts").glob("*.safetensors"))
    assert "the same command goes on" in capfd.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert call(f"{TOY} --count 2 --out parts") == 0
    assert not (here / "parts" / "000.partial").exists()
    for name in ("000.safetensors", "001.safetensors"):
        a, b = (read_trajectory(here / folder / name) for folder in ("whole", "parts"))
        assert torch.equal(a.action, b.action) and torch.equal(a.state, b.state)
        assert a.card["score"] == b.card["score"]


def test_a_damaged_trajectory_exits_with_3_and_its_name(here, capfd):
    assert call(f"{TOY} --out found") == 0
    (here / "found" / "000.safetensors").write_bytes(b"text")
    capfd.readouterr()
    code = call(f"{TOY} --out found")
    check_refusal(code, *capfd.readouterr(), 3, "000.safetensors holds no trajectory")


def test_a_machine_without_opengl_is_told_that_there_are_no_strips(here, capfd, monkeypatch):
    def fail(*args, **kwargs):
        raise NoOpenGLError("none here")

    monkeypatch.setattr("penspin_style.viewer.trajectory.GLRenderer", fail)
    assert call(f"{TOY} --out found") == 0
    assert "no strips: none here" in capfd.readouterr().err


def test_the_summary_counts_successes_and_trajectories_that_came_to_their_end():
    def card(index, turns, success, lost, terminated, cpu):
        score = {"turns": turns, "success_at_end": success}
        facts = {"index": index, "lost": lost, "terminated": terminated, "cpu_seconds": cpu}
        return {"score": score, **facts}

    cards = [card(0, 2.0, 1.0, False, False, 9.0), card(1, 0.5, 0.0, True, False, 3.0)]
    cards += [card(2, 1.0, 1.0, False, True, 5.0)]
    total = summary(cards, "turns")
    assert total["median"] == 1.0 and total["median_cpu_seconds"] == 5.0
    assert total["success"] == pytest.approx(2 / 3) and total["whole"] == pytest.approx(1 / 3)
    assert summary([], "turns") == {"trajectories": [], "score": "turns"}


def test_the_task_file_comes_before_the_command_line():
    _, search, _, text = compose_search(["task=pen_spin", "search.cost.tilt=9"], "mppi")
    assert (search.method, search.beams, search.cost["tilt"]) == ("mppi", 12, 9.0)
    assert search.cost["height"] == 0.6 and "lowest: 0.608" in text


def test_states_along_the_trajectories_that_hold_become_a_bank(here, capfd):
    assert call(f"{TOY} --count 2 --out found --bank bank") == 0
    assert "4 of 4 states hold: bank" in capfd.readouterr().err  # every 12 of 20 steps
    rows = read_bank(here / "bank")
    for i, row in enumerate(rows):
        state = read_trajectory(here / "found" / f"00{i // 2}.safetensors").state[i % 2 * 12]
        # mjSTATE_INTEGRATION begins with time, qpos, qvel; a row is qpos, qvel, ctrl
        assert row[0] == pytest.approx(float(state[1])) and row[1] == 0.0
    card = json.loads((here / "bank" / "card.json").read_text())
    assert card["task"] == "tests.support.toy" and card["states"] == card["tried"] == 4


def test_states_that_do_not_hold_stay_out_of_a_bank(here, capfd, monkeypatch):
    def leaves(self, sim):
        return sim.data.qpos[:, 0] > 0.0

    monkeypatch.setattr("tests.support.toy.Cart.terminated", leaves)
    assert call(f"{TOY} --count 4 --out found --bank bank") == 0
    assert (read_bank(here / "bank")[:, 0] <= 0.0).all()
