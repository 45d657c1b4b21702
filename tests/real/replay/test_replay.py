"""Trajectories of a teacher: made in simulation, repeated on twins, recorded and labelled."""

import pathlib
import types

import numpy as np
import pytest

from penspin_style.data.episodes.episode import Episode, episodes
from penspin_style.deploy.actions import Decoder
from penspin_style.train.load_policy import open_policy
from real.control.session import open_robot, place_by_hand
from real.control.success import SUCCESS, SuccessCheck, SuccessRule
from real.replay import replay
from real.replay.collect import Stage, choose, keep
from real.robot import RobotError
from tests.support.cart import CHANNELS
from tests.support.replays import carts_opened, trajectory
from tests.support.terminal import call, check_refusal

ROOT = pathlib.Path(__file__).parents[3]
TEACHER = ROOT / "outputs/pretrained/panda_lift_cube"
TWIN = """
task: panda_lift_cube
overrides: [task.randomize=false]
measured: [{feature: tcp_pos}, {feature: gripper, scale: 25.0}]
"""


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "cube.yaml"
    path.write_text(TWIN)
    return str(path)


@pytest.fixture(scope="module")
def made(twin_file, tmp_path_factory, one_thread):
    """Four trajectories of the shipped teacher, in a folder."""
    folder = tmp_path_factory.mktemp("made")
    stage = Stage(open_policy(TEACHER, []), twin_file, [], 4)
    kept, how = choose(stage, count=3, rule=SUCCESS, seed=5)
    keep(stage, kept, folder, rule=SUCCESS, how=how)
    return folder


@pytest.fixture(scope="module")
def repeated(made, twin_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repeated")
    plan = replay.Plan([replay.load(path) for path in replay.find(made)])
    opened = open_robot(twin_file)
    outcomes = replay.repeat(opened, plan, SuccessCheck(SUCCESS), out=folder, quiet=True)
    return folder, outcomes


# Made.


def test_a_trajectory_says_where_it_began_and_how_it_was_chosen(made):
    first = Episode.open(episodes(made)[0])
    facts = first.header.facts
    assert first.success and first.header.source == "sim" and first.steps == 80
    assert facts["chosen"] == "success>=1" and facts["tried"] == 4
    assert len(facts["start"]["box"]) == 7 and len(facts["start"]["joint1"]) == 1
    assert facts["start"]["box"][:3] == pytest.approx(first["observation/box_pos"][0], abs=1e-6)
    low, high = np.array([0.25, -0.25]), np.array([0.55, 0.25])
    assert (facts["start"]["box"][:2] >= low).all() and (facts["start"]["box"][:2] <= high).all()


def test_targets_are_what_the_actions_add_up_to(made):
    first = Episode.open(episodes(made)[0])
    last = np.vstack((first["sent"][:1], first["sent"][:-1]))
    again = Decoder(first.header.card).decode(first["action"][1:], last[1:])
    assert np.array_equal(again, first["target"][1:])
    assert np.allclose(first["sent"], first["target"], rtol=0.0, atol=1e-7)  # float32's rounding
    tcp, opening = first["observation/tcp_pos"][0], 1.0
    begun = Decoder(first.header.card).decode(first["action"][0], np.array([*tcp, opening]))
    assert first["target"][0] == pytest.approx(begun, abs=1e-6)


def test_a_stage_without_a_twin_of_the_teachers_joints_is_refused():
    with pytest.raises(ValueError, match="pen_spin_student observes no 'tcp_pos'"):
        Stage(open_policy(TEACHER, []), "pen", [], 1)


class Stagehand:
    """A stage whose episodes have these measures."""

    num = 2

    def __init__(self, ways):
        self.ways, self.seeds = ways, []

    def play(self, seed, rule):
        self.seeds.append(seed)
        for i in range(self.num):
            way = self.ways[seed + i]
            yield types.SimpleNamespace(measures={"way": way, "success": way >= 1.0}, seed=seed)


def test_the_first_successes_are_kept():
    stage = Stagehand([0.5, 1.5, 1.1, 0.2, 2.0, 3.0])
    kept, how = choose(stage, count=2, rule=SUCCESS)
    assert [t.measures["way"] for t in kept] == [1.5, 1.1]
    assert how == {"chosen": "success>=1", "tried": 4} and stage.seeds == [0, 2]


def test_the_best_share_is_kept_of_as_many_as_that_takes():
    stage = Stagehand([0.5, 1.5, 1.1, 0.2, 2.0, 3.0, 0.1, 0.3])
    kept, how = choose(stage, count=2, rule=SUCCESS, best="way", share=0.25)
    assert [t.measures["way"] for t in kept] == [3.0, 2.0]
    assert how == {"chosen": "best 2 of 8 by way", "tried": 8}


def test_nothing_to_keep_is_an_error_that_says_what_helps():
    with pytest.raises(RobotError, match=r"none of 6 episodes fulfilled way>=9; train .* --best"):
        choose(Stagehand([0.0] * 6), count=2, rule=SuccessRule("way", 9.0), most=6)
    with pytest.raises(RobotError, match="does not measure 'turns', it measures success, way"):
        choose(Stagehand([0.0] * 6), count=1, rule=SUCCESS, best="turns")


# Repeated.


def test_a_twin_without_chance_repeats_the_simulation_bit_for_bit(made, repeated):
    folder, outcomes = repeated
    assert [o.success for o in outcomes] == [True] * 3
    for before, after in zip(episodes(made), episodes(folder), strict=True):
        sim, twin = Episode.open(before), Episode.open(after)
        assert twin.header.facts["trajectory"] == before.name
        assert twin.header.source == "twin" and twin.header.card is None
        assert np.array_equal(sim["target"], twin["target"])
        for name in ("box_pos", "tcp_pos", "gripper"):
            key = f"observation/{name}"
            assert np.array_equal(sim[key], twin[key]), key


def test_recorded_actions_say_what_was_sent(repeated):
    folder, _ = repeated
    first = Episode.open(episodes(folder)[0])
    decoder = Decoder(open_channels(first))
    again = decoder.decode(first["action"][1:], first["sent"][:-1])
    assert np.allclose(again, first["sent"][1:], atol=1e-6)
    assert np.abs(first["action"]).max() <= 1.0


def open_channels(episode):
    from tasks.panda.lift_cube import Config, PandaLiftCube

    assert episode.header.task == "panda_lift_cube"
    return PandaLiftCube(Config()).actions


def test_every_repetition_begins_at_the_start_with_a_seed_of_its_own(tmp_path):
    trajectory(tmp_path / "made")
    opened = carts_opened()
    plan = replay.Plan([replay.load(p) for p in replay.find(tmp_path / "made")], 2, seed=30)
    replay.repeat(opened, plan, SuccessCheck(SUCCESS), out=tmp_path / "out", quiet=True)
    told = [t for t in opened.robot.told if isinstance(t, str)]
    assert told == ["connect", "seed 30", "reset", "seed 31", "reset", "disconnect"]
    first, second = (Episode.open(p) for p in episodes(tmp_path / "out"))
    assert first["observation/place"][0] == pytest.approx([0.1, 0.0])
    assert (first.header.facts["seed"], second.header.facts["seed"]) == (30, 31)
    assert second.header.facts["repetition"] == 1


def test_it_is_enough_when_enough_were_kept(tmp_path):
    for steps in (12, 3, 12, 12):  # success is 0.5 m to the right
        trajectory(tmp_path / "made", steps)
    plan = replay.Plan([replay.load(p) for p in replay.find(tmp_path / "made")], count=2)
    success = SuccessCheck(SUCCESS, only_successes=True)
    outcomes = replay.repeat(carts_opened(), plan, success, out=tmp_path / "out", quiet=True)
    assert [o.success for o in outcomes] == [True, False, True]
    assert len(episodes(tmp_path / "out")) == 2


def test_a_real_robot_is_started_with_its_own_joints_alone(tmp_path):
    found = replay.load(trajectory(tmp_path))
    assert set(replay.start_for(carts_opened(), found)) == {"left", "right", "cube"}
    real = carts_opened(source="real", task="", joints=("left", "right"))
    assert set(replay.start_for(real, found)) == {"left", "right"}
    replay.repeat(real, replay.Plan([found]), SuccessCheck(), out=tmp_path / "out", quiet=True)
    episode = Episode.open(*episodes(tmp_path / "out"))
    assert (episode.header.source, episode.header.task) == ("real", "carts")
    assert episode.success is None and "seed" not in episode.header.facts


def test_the_object_is_placed_by_hand_only_where_there_is_a_hand(monkeypatch, capsys):
    real = carts_opened(source="real")
    assert place_by_hand(carts_opened(), "put it there") is None
    assert place_by_hand(real, "put it there") is None  # nobody at a terminal
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "\n", raising=False)
    place_by_hand(real, "put it there")()
    assert capsys.readouterr().err == "put it there; then press Enter "


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"channels": CHANNELS[::-1]}, r"targets of \['right', 'left'\], the robot takes"),
        ({"dt": 0.1}, "a target every 0.1 s, the robot takes one every 0.05 s"),
    ],
)
def test_a_trajectory_for_another_robot_is_refused(tmp_path, changes, complaint):
    plan = replay.Plan([replay.load(trajectory(tmp_path, **changes))])
    opened = carts_opened()
    with pytest.raises(RobotError, match=complaint):
        replay.repeat(opened, plan, SuccessCheck(SUCCESS), quiet=True)
    assert opened.robot.told == []


@pytest.mark.parametrize("start", [{}, [1.0], {"left": "here"}])
def test_an_episode_that_is_no_trajectory_is_refused(tmp_path, start):
    path = trajectory(tmp_path, start=start)
    with pytest.raises(ValueError, match=r"no trajectory; make trajectories|its start is not one"):
        replay.load(path)


# The command line.


def test_the_verb_makes_and_runs(twin_file, tmp_path, capsys):
    made, out = tmp_path / "made", tmp_path / "out"
    line = f"replay make {TEACHER} {made} --robot {twin_file} --episodes 2 --num-envs 2 --seed 9"
    assert call(line) == 0
    assert "2 trajectories of 2" in capsys.readouterr().out
    assert call(f"replay run {made} --robot {twin_file} --out {out} --successes --json") == 0
    assert len(episodes(out)) == 2
    assert '"successes": 2, "success_rate": 1.0' in capsys.readouterr().out
    check_refusal(call(line), *capsys.readouterr(), 2, "holds episodes already")


def test_trajectories_can_be_made_slower_and_smoother(twin_file, tmp_path, capsys):
    made = tmp_path / "made"
    line = f"replay make {TEACHER} {made} --robot {twin_file} --episodes 1 --num-envs 2 --seed 9"
    assert call(f"{line} --speed 0.5 --smooth 3 --smooth-channels tcp_x tcp_z nowhere") == 2
    assert "commands no 'nowhere', it commands ['tcp_x'" in capsys.readouterr().err
    assert call(f"{line} --speed 0.5 --smooth 3 --smooth-channels tcp_x tcp_z") == 0
    (path,) = episodes(made)
    found = Episode.open(path)
    assert 0.3 < np.abs(found["action"]).max() <= 0.5
    assert (found.header.facts["speed"], found.header.facts["smooth"]) == (0.5, 3)
    sent, target = found["sent"], found["target"]
    assert np.allclose(target[1:-1, [0, 2]], (sent[:-2] + sent[1:-1] + sent[2:])[:, [0, 2]] / 3)
    assert np.array_equal(target[:, [1, 3]], sent[:, [1, 3]])


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        ("replay run nowhere --robot pen", 2, "nowhere does not exist; make trajectories with"),
        ("replay run {made} --robot pan", 2, "there is no robot 'pan'; there are aloha, "),
        ("replay run {made} --robot pen", 2, "in this order"),
        ("replay run {made} --robot {twin} --success turns", 2, "does not measure 'turns'"),
        ("replay run {made} --robot panda --success turns>5", 2, "is no rule of success"),
        ("replay run {made} --robot panda --ask", 2, "--ask needs a terminal"),
        ("replay run {made} --robot franka", 2, "say franka:ADDRESS"),
        ("replay make nothing {made}/x --robot pen", 2, "nothing does not exist"),
    ],
)
def test_an_invalid_command_is_refused_in_one_line(made, twin_file, capsys, line, code, complaint):
    got = call(line.format(made=made, twin=twin_file))
    check_refusal(got, *capsys.readouterr(), code, complaint)
