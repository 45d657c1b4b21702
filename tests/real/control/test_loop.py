"""The control loop, on carts and on twins."""

import dataclasses
import json
import os
import pathlib
import signal
import threading
import time

import numpy as np
import pytest

from penspin_style.data.episodes.episode import Episode, Recorder, episodes
from penspin_style.deploy.actions import Decoder
from penspin_style.deploy.bundle import Bundle
from penspin_style.system import interrupt
from real.control.loop import ANSWERED, Command, Loop, PolicySource, header, watch
from real.control.safety import SafeRobot
from real.control.session import connected, open_robot, report
from real.control.success import SUCCESS, SuccessCheck, SuccessRule
from real.robot import RobotError, StoppedError
from real.serving.server import PolicyServer
from tests.soak import attack_link
from tests.support.cart import CHANNELS, DT, Carts, Script
from tests.support.terminal import call, check_refusal

pytestmark = pytest.mark.clock

ROOT = pathlib.Path(__file__).parents[3]
ONNX = ROOT / "outputs/pretrained/panda_lift_cube/policy.onnx"
TWIN = """
task: panda_lift_cube
measured: [{feature: tcp_pos}, {feature: gripper, scale: 25.0}]
"""


@pytest.fixture
def carts():
    return Carts()


BY_RULE = SuccessCheck(SUCCESS)


def loop_of(carts, policy, folder=None, success=BY_RULE, **options):
    safe = SafeRobot(carts)
    recorder = None
    if folder is not None:
        head = header(safe, task="carts", source="twin", name="carts", card=policy.card)
        recorder = Recorder(folder, head)
    options = {"realtime": False, **options}
    return Loop(safe, PolicySource(policy), success, recorder=recorder, **options)


def at_rate(policy, control_dt):
    policy.card = dataclasses.replace(policy.card, control_dt=control_dt)
    return policy


def test_an_action_is_decoded_from_what_was_sent_before(carts):
    outcome = loop_of(carts, Script([(1, 0), (1, -1), (0.5, -1)])).run(3)
    sent = [told for told in carts.told if isinstance(told, np.ndarray)]
    assert np.allclose(sent, [(0.1, 0.0), (0.2, -0.1), (0.25, -0.2)], atol=1e-6)
    assert outcome.steps == 3 and outcome.stopped == ""


def test_a_row_is_what_was_seen_then_asked_for_then_sent(carts, tmp_path):
    actions = [(1.0, 0.0), (-1.0, 1.0), (1.0, 1.0)]
    outcome = loop_of(carts, Script(actions), tmp_path).run(3, facts={"seed": 7})
    episode = Episode.open(outcome.path)
    assert np.allclose(episode["time"], [0.0, DT, 2 * DT])
    assert np.array_equal(episode["action"], np.array(actions, np.float32))
    assert np.allclose(episode["sent"], [(0.1, 0.0), (0.0, 0.1), (0.1, 0.2)], atol=1e-6)
    before = np.vstack(([0.0, 0.0], episode["sent"][:-1]))
    assert np.allclose(episode["observation/place"], before, atol=1e-6)
    assert np.array_equal(episode["observation/count"], [0, 1, 2])
    assert np.array_equal(episode[ANSWERED], [1, 1, 1])
    assert np.allclose(Decoder(CHANNELS).decode(episode["action"], before), episode["target"])
    assert episode.header.card == Script([]).card and episode.header.source == "twin"
    facts = episode.header.facts
    assert facts["seed"] == 7 and facts["rule"] == "success>=1"
    assert facts["measures"]["way"] == pytest.approx(0.3)
    assert facts["latency"]["step"]["count"] == 3


def test_what_safety_changed_is_recorded_as_it_was_sent(carts, tmp_path):
    loop = loop_of(carts, Script([(1, 1)] * 4), tmp_path)
    loop.robot.limiter.limits.low.setflags(write=False)
    decode = loop.source.decoder.decode
    loop.source.decoder.decode = lambda action, last: decode(action, last) + 5.0
    outcome = loop.run(2)
    episode = Episode.open(outcome.path)
    assert (episode["target"] > 5.0).all()
    assert np.allclose(np.diff(episode["sent"], axis=0), 0.1, atol=1e-5)  # a full action, no more
    assert outcome.counts["position"] == 2 and episode.header.facts["counts"]["position"] == 2


def test_a_step_without_an_answer_sends_nothing_and_says_so(carts, tmp_path):
    outcome = loop_of(carts, Script([(1, 0), None, (1, 0)]), tmp_path).run(3)
    assert sum(isinstance(told, np.ndarray) for told in carts.told) == 2
    episode = Episode.open(outcome.path)
    assert np.array_equal(episode[ANSWERED], [1, 0, 1])
    assert np.array_equal(episode["action"][1], (0.0, 0.0))
    assert np.array_equal(episode["sent"][1], episode["sent"][0])
    assert outcome.counts["unanswered"] == 1


def test_the_history_goes_on_where_no_answer_comes(carts):
    policy = Script([(1, 0), (1, 0), None, (1, 0)], history=3)
    loop_of(carts, policy).run(4)
    left = [seen["state"][[0, 2, 4]] for seen in policy.seen]  # places of three control steps
    assert np.allclose(left, [(0, 0, 0), (0, 0, 0.1), (0, 0.1, 0.2), (0.1, 0.2, 0.2)], atol=1e-6)


def test_an_episode_begins_without_the_past_of_the_last(carts):
    policy = Script([(1, 0), (1, 0)], history=2)
    loop = loop_of(carts, policy)
    loop.run(2)
    loop.run(1, start={"left": np.array([0.7])})
    assert policy.episodes == 2
    assert np.allclose(policy.seen[0]["state"][[0, 2]], 0.7)


def test_an_episode_ends_when_the_robot_says_so(carts):
    carts.length = 4
    assert loop_of(carts, Script([])).run(100).steps == 4


def test_success_is_what_the_rule_says(carts):
    half = Script([(1, 0)] * 5)
    assert loop_of(carts, half).run(5).success is True
    assert loop_of(carts, half).run(4).success is False
    assert (
        loop_of(carts, half, success=SuccessCheck(SuccessRule("way", 0.3))).run(4).success is True
    )
    assert loop_of(carts, half, success=SuccessCheck()).run(5).success is None
    with pytest.raises(RobotError, match="does not measure 'turns', it measures success, way"):
        loop_of(carts, half, success=SuccessCheck(SuccessRule("turns", 1.0))).run(5)


def test_of_several_episodes_only_the_successes_are_kept(carts, tmp_path):
    success = SuccessCheck(SUCCESS, only_successes=True)
    loop = loop_of(carts, Script([(1, 0)] * 6), tmp_path, success)
    paths = [loop.run(steps).path for steps in (5, 3, 6)]
    assert [path is None for path in paths] == [False, True, False]
    assert episodes(tmp_path) == [paths[0], paths[2]]
    assert all(Episode.open(path).success for path in episodes(tmp_path))


@pytest.mark.parametrize(("answer", "kept"), [("y", True), ("n", False), ("d", None)])
def test_the_operator_has_the_last_word(carts, tmp_path, monkeypatch, answer, kept, capsys):
    monkeypatch.setattr("sys.stdin.readline", lambda: f"{answer}\n", raising=False)
    outcome = loop_of(
        carts, Script([(1, 0)] * 5), tmp_path, SuccessCheck(SUCCESS, by_hand=True)
    ).run(5)
    assert outcome.success is kept
    assert [Episode.open(path).success for path in episodes(tmp_path)] == (
        [] if kept is None else [kept]
    )
    assert "(by success>=1: yes)" in capsys.readouterr().err


def test_a_stopped_robot_ends_the_episode_and_a_reset_begins_the_next(carts, tmp_path):
    policy = Script([(1, 0)] * 9)
    loop = loop_of(carts, policy, tmp_path)
    act = policy.act

    def stopping(inputs):
        if len(policy.seen) == 3:
            loop.robot.stop("the emergency stop was pressed")
        return act(inputs)

    policy.act = stopping
    outcome = loop.run(9)
    assert outcome.stopped == "the emergency stop was pressed" and outcome.steps == 3
    episode = Episode.open(outcome.path)
    assert episode.steps == 3 and episode.header.facts["stopped"] == outcome.stopped
    policy.act = act
    assert loop.run(9).steps == 9
    assert [told for told in carts.told if isinstance(told, str)] == ["reset", "stop", "reset"]


def test_a_robot_that_fails_leaves_no_episode(carts, tmp_path):
    loop = loop_of(carts, Script([]), tmp_path)
    step = loop.source.policy.act

    def breaking(inputs):
        carts.broken = RobotError("the cable is out")
        return step(inputs)

    loop.source.policy.act = breaking
    with pytest.raises(RobotError, match="the cable is out"):
        loop.run(5)
    assert list(tmp_path.iterdir()) == []


def test_real_time_keeps_the_rate_and_gives_the_policy_until_the_next_tick(carts):
    carts.clock, carts.control_dt = time.monotonic, 0.01
    policy = at_rate(Script([]), 0.01)
    safe = SafeRobot(carts)
    with watch(safe) as watchdog:
        loop = Loop(safe, PolicySource(policy), SuccessCheck(), watchdog=watchdog)
        began = time.monotonic()
        outcome = loop.run(50)
        took = time.monotonic() - began
    assert outcome.steps == 50
    assert 0.5 <= took < 0.5 + 0.01 * (1 + outcome.counts["left_out"]) + 0.1
    gaps = np.diff(policy.deadlines) / 0.01
    assert np.allclose(gaps, np.rint(gaps), atol=1e-6)  # in phase, whatever was late
    assert np.median(gaps) == pytest.approx(1.0)


def test_an_action_that_has_grown_old_is_not_sent(carts):
    source = PolicySource(Script([(1, 0)]))
    source.begin()
    carts.reset()
    decode = source.decoder.decode

    def slow(action, last):
        time.sleep(0.03)
        return decode(action, last)

    source.decoder.decode = slow
    assert source.next(carts.observe(), carts.target, time.monotonic() + 0.01) is None
    assert source.counts()["dropped"] == 1
    assert source.next(carts.observe(), carts.target, float("inf")) is not None


def test_real_time_without_a_watchdog_is_refused(carts):
    with pytest.raises(ValueError, match="needs a watchdog"):
        Loop(SafeRobot(carts), PolicySource(Script([])), SuccessCheck())


def test_a_robot_that_says_itself_that_it_is_stopped_is_not_complete(carts, tmp_path):
    loop = loop_of(carts, Script([(1, 0)] * 9), tmp_path)
    observe = carts.observe

    def stopping():
        if carts.count == 3:
            raise StoppedError("its enabling switch was let go")
        return observe()

    carts.observe = stopping
    outcome = loop.run(9)
    assert outcome.stopped == "its enabling switch was let go" and outcome.steps == 3
    assert Episode.open(outcome.path).header.facts["stopped"] == outcome.stopped
    assert report([outcome])["stopped"] == 1 and report([outcome])["judged"] == 0
    assert carts.told[-1] == "stop"  # and it takes nothing until it is reset
    carts.observe = observe
    assert loop.run(9).stopped == ""


def test_a_silent_policy_gets_the_robot_held_and_then_stopped(carts):
    carts.clock, carts.control_dt = time.monotonic, 0.02
    safe = SafeRobot(carts)
    with watch(safe) as watchdog:
        policy = at_rate(Script([None] * 100), 0.02)
        loop = Loop(safe, PolicySource(policy), SuccessCheck(), watchdog=watchdog)
        outcome = loop.run(100)
        (held, what), (stopped, then) = watchdog.events
    assert outcome.stopped == "no fresh action for 0.5 s"
    assert (what, then) == ("hold", "stop")
    assert stopped - held == pytest.approx(0.4, abs=0.1)
    assert outcome.steps <= 26 and outcome.success is None


@pytest.fixture(scope="module")
def twin_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "cube.yaml"
    path.write_text(TWIN)
    return str(path)


def test_a_policy_lifts_the_twins_cube_the_same_way_each_time(twin_file, tmp_path):
    opened = open_robot(twin_file)
    bundle = Bundle.load(ONNX)
    outcomes = []
    with connected(opened) as (safe, watchdog):
        assert watchdog is None
        head = header(safe, task="cube", source="twin", name=opened.name, card=bundle.card)
        recorder = Recorder(tmp_path, head)
        loop = Loop(
            safe,
            PolicySource(bundle),
            SuccessCheck(SUCCESS),
            recorder=recorder,
            realtime=False,
        )
        for seed in (3, 4, 3):
            opened.seed(seed)
            outcomes.append(loop.run(opened.steps))
    assert [o.success for o in outcomes] == [True] * 3 and opened.steps == 80
    first, other, again = (Episode.open(o.path) for o in outcomes)
    assert all(np.array_equal(first[c.name], again[c.name]) for c in first.header.columns)
    assert not np.array_equal(first["sent"], other["sent"])
    with pytest.raises(RobotError, match="not connected"):  # left safe
        opened.robot.observe()


def test_a_served_policy_does_what_it_does_in_this_process(twin_file, tmp_path, capsys):
    line = f"rollout --robot {twin_file} --episodes 2 --seed 5 --json"
    assert call(f"{line} --policy {ONNX} --out {tmp_path / 'local'}") == 0
    with PolicyServer(Bundle.load(ONNX), port=0) as server:
        assert call(f"{line} --server {server.url} --fast --out {tmp_path / 'served'}") == 0
    local, served = (json.loads(text) for text in capsys.readouterr().out.splitlines())
    assert local["success_rate"] == served["success_rate"] == 1.0
    assert local["interval"] == pytest.approx([0.342, 1.0], abs=1e-3)  # Wilson's, of 2 in 2
    for one, other in zip(local["files"], served["files"], strict=True):
        one, other = Episode.open(one), Episode.open(other)
        assert np.array_equal(one["sent"], other["sent"])
        assert (one.header.facts["seed"], other.header.card) == (
            other.header.facts["seed"],
            one.header.card,
        )


@pytest.mark.parametrize(
    ("argv", "code", "complaint"),
    [
        ("--policy {onnx} --robot pan", 2, "there is no robot 'pan'; there are aloha,"),
        ("--policy nothing.onnx --robot pen", 2, "nothing.onnx is not a file"),
        ("--policy {onnx} --robot pen", 2, "the policy commands ['tcp_x'"),
        ("--policy {onnx} --robot {blind}", 2, "box_pos: not offered"),
        ("--server ws://127.0.0.1:9 --robot pen --patience 0.2", 3, "start one with penspin serve"),
        ("--policy {onnx} --robot {twin} --success turns", 2, "does not measure 'turns'"),
        ("--policy {onnx} --robot {twin} --seconds 0", 2, "'0' is not a number above 0"),
        ("--robot {twin}", 2, "one of the arguments --server --policy is required"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(twin_file, capsys, argv, code, complaint):
    blind = pathlib.Path(twin_file).with_name("blind.yaml")
    blind.write_text(f"{TWIN}features: [tcp_pos, gripper]\n")
    got = call("rollout " + argv.format(onnx=ONNX, twin=twin_file, blind=blind))
    check_refusal(got, *capsys.readouterr(), code, complaint)


@pytest.mark.parametrize("number", interrupt.SIGNALS)
def test_a_process_that_is_told_to_end_leaves_the_robot_safe(twin_file, number):
    opened = open_robot(twin_file)
    before = signal.getsignal(number)
    with pytest.raises(interrupt.Interrupted) as ended, connected(opened) as (safe, _):
        safe.reset()
        os.kill(os.getpid(), number)
        time.sleep(1.0)
    assert ended.value.number == number
    assert safe.reason and signal.getsignal(number) is before
    with pytest.raises(RobotError, match="not connected"):
        opened.robot.observe()


class Struck(threading.Condition):
    """Between two instructions, just locked, a signal comes: when the main thread enters."""

    def __enter__(self):
        got = super().__enter__()
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGHUP)
        return got


class Still:
    """Wants what the robot follows already."""

    def check(self, robot):
        pass

    def begin(self):
        pass

    def next(self, observation, last, deadline):
        return Command(last)

    def counts(self):
        return {}


@pytest.mark.timeout(60)
def test_a_signal_at_a_bad_moment_leaves_no_lock_behind_and_the_robot_safe(twin_file):
    opened = open_robot(twin_file, realtime=True)
    with pytest.raises(interrupt.Interrupted), connected(opened) as (safe, watchdog):
        watchdog._wake.__class__ = Struck
        Loop(safe, Still(), SuccessCheck(), watchdog=watchdog, realtime=True).run(50)
    assert safe.reason == "interrupted by SIGHUP" and not watchdog._thread.is_alive()


def test_a_server_under_attack_never_moves_the_twin_wrongly(monkeypatch):
    monkeypatch.setattr(attack_link, "CALM", (0.1, 0.2))
    monkeypatch.setattr(attack_link, "OUTAGE", (0.2, 0.6))
    # the limits are 0.1 s and 0.5 s; a machine that is busy with other tests wakes threads late
    monkeypatch.setattr(attack_link, "LIMITS", {**attack_link.LIMITS, "hold": 0.3, "stop": 0.7})
    found = attack_link.measure(attack_link.POLICY, "panda", list(attack_link.ATTACKS), 2)
    assert found["within"], found
    assert found["hold"]["count"] >= 4 and found["stop"]["count"] >= 1
    assert found["hold"]["p50"] <= 0.15 and found["commands"] > 30
    assert [r["count"] for r in found["reconnect"].values()] == [2] * 4
