"""The Allegro hand's driver against a real ROS graph: a master and hand nodes on loopback."""

import contextlib
import copy
import dataclasses
import gc
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from penspin_style.features import Feature, PolicyCard
from real.drivers import allegro_ros, ros
from real.drivers.allegro_ros import AllegroConfig, AllegroRos
from real.drivers.allegro_topics import NAMES, TOPICS, in_order
from real.drivers.external import External
from real.drivers.hand_node import Followers, HandNode
from real.rate import Rate
from real.robot import RobotError, StoppedError
from tasks.robots.allegro import model as allegro
from tasks.robots.allegro.description import HOME, LOWER, UPPER, fingertips
from tests.support.robot_contract import Hang, check_robot
from tests.support.ros_fake import Graph, Message, Publisher, Subscriber

ROOT = pathlib.Path(__file__).parents[3]
INSTALLED = ros.is_installed() and shutil.which("rosmaster")
needs_ros = pytest.mark.skipif(
    not INSTALLED, reason="ROS 1 is not installed: run scripts/install_ros.sh"
)
pytestmark = [  # rospy is of 2020
    pytest.mark.clock,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ros"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# Without ROS.


def test_the_channels_are_those_of_the_shipped_policy():
    card = ROOT / "outputs/pretrained/pen_spin/student/policy/card.json"
    policy = PolicyCard.from_json(card.read_text())
    driver = AllegroRos()
    assert driver.channels == policy.actions and driver.control_dt == policy.control_dt
    np.testing.assert_allclose(driver.config.start, [j.default for j in policy.joints], atol=1e-7)


def test_fingertips_are_those_of_the_simulated_hand():
    qpos = np.random.default_rng(0).uniform(LOWER, UPPER, (200, 16))
    theirs = allegro.fingertips(torch.from_numpy(qpos)).numpy()
    np.testing.assert_allclose(fingertips(qpos), theirs, atol=1e-6)
    with pytest.raises(ValueError, match="must be"):
        fingertips(qpos[:, :4])


def test_a_state_is_read_by_name_and_by_position_only_without_names():
    values = np.arange(16.0)
    shuffled = np.random.default_rng(1).permutation(16)
    by_name = in_order([NAMES[i] for i in shuffled], values[shuffled])
    np.testing.assert_array_equal(by_name, values)
    np.testing.assert_array_equal(in_order([], values), values)


@pytest.mark.parametrize(
    ("names", "positions", "complaint"),
    [
        ((*NAMES[:15], "joint_16.0"), range(16), r"unknown: \['joint_16.0'\]; missing"),
        ((*NAMES[:15], NAMES[0]), range(16), r"missing: .*15.0.*there twice: \['joint_0.0'\]"),
        (NAMES[:15], range(15), r"missing: \['joint_15.0'\]"),
        (NAMES, range(15), "must have 16 positions, this has 15"),
        ((), range(17), "must have 16 positions, this has 17"),
        (NAMES, [0.0] * 15 + [float("nan")], "position 15 of this state is nan"),
    ],
)
def test_a_state_that_is_not_the_hands_is_refused(names, positions, complaint):
    with pytest.raises(RobotError, match=complaint):
        in_order(names, positions)


def test_a_tally_counts_what_is_missing_and_takes_lower_numbers_for_a_new_publisher():
    tally = ros.Tally()
    for i, number in enumerate((7, 8, 11, 12, 1, 2)):
        tally.add(number, 0.05 * i, 0.001 * i, "/a")
    facts = tally.facts()
    assert (facts["count"], facts["lost"]) == (6, 2)
    assert facts["rate_hz"] == pytest.approx(20.0)
    assert facts["p50_ms"] == pytest.approx(2.5)
    tally.add(99, 0.3, 0.0, "/b")  # another publisher's numbers are its own
    assert tally.lost == 2


def test_without_a_master_the_error_says_so_at_once(monkeypatch):
    monkeypatch.setenv("ROS_MASTER_URI", "http://127.0.0.1:9")
    with pytest.raises(ros.RosError, match=r"no ROS master at http://127.0.0.1:9 .*start roscore"):
        ros.check_master()
    monkeypatch.setenv("ROS_MASTER_URI", "nowhere")
    with pytest.raises(ros.RosError, match="is no address"):
        ros.check_master()


def test_without_ros_the_driver_says_what_to_install():
    code = """
import sys
from real.drivers import ros
ros.ROOTS = ()
sys.path = [p for p in sys.path if "ros" not in p]
try:
    from real.drivers.allegro_ros import AllegroRos
    AllegroRos().connect()
except ros.RosError as error:
    print(error)
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True
    )
    assert "install_ros.sh" in said.stdout


# With a stand-in for ROS: stops.


@pytest.fixture
def hand(monkeypatch):
    """Make driver and node of a kind, on one graph in this process; the driver not connected."""
    over, threads = threading.Event(), []

    def make(topics="penspin", **changes):
        graph = Graph(monkeypatch)
        node = HandNode(Followers(), TOPICS[topics])
        threads.append(threading.Thread(target=node.spin, args=(over,)))
        threads[-1].start()
        changes = {"start_speed": 5.0, "stale": 40.0, "trust_stamps": False, **changes}
        return AllegroRos(AllegroConfig(topics=TOPICS[topics], **changes)), node, graph

    yield make
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("topics", sorted(TOPICS))
def test_the_driver_and_the_hands_node_keep_the_contract_also_while_a_call_hangs(
    hand, topics, monkeypatch
):
    driver, _, graph = hand(topics)

    @contextlib.contextmanager
    def hangs(call):
        hang, whole = Hang(), fingertips
        if call == "observe":

            def hanging(joints):
                monkeypatch.setattr(allegro_ros, "fingertips", whole)
                hang()
                return whole(joints)

            monkeypatch.setattr(allegro_ros, "fingertips", hanging)
        else:
            graph.hang(TOPICS[topics].command, hang)
        yield hang

    check_robot(driver, hangs=hangs)


def test_a_stop_that_nobody_hears_is_not_confirmed_and_is_sent_again(hand):
    driver, _, graph = hand("allegro_hand_ros")
    driver.connect()
    driver.reset()
    topics = TOPICS["allegro_hand_ros"]
    ears = {topic: graph.ears.pop(topic) for topic in (topics.command, topics.words)}
    for _ in range(2):
        with pytest.raises(RobotError, match=r"nobody listens to .*joint_cmd, .*lib_cmd: the hand"):
            driver.stop()
    with pytest.raises(StoppedError):
        driver.command(driver.target)
    graph.ears |= ears
    driver.stop()
    said = len(graph.said)
    driver.stop()  # it has been heard
    assert len([topic for topic, _ in graph.said[said:] if topic != topics.state]) == 0
    assert [topic for topic, _ in graph.said if topic == topics.words] == [topics.words] * 3
    driver.disconnect()


def test_a_hand_that_would_not_hear_the_word_to_go_limp_is_refused(hand):
    driver, _, graph = hand("allegro_hand_ros", patience=0.3)
    graph.ears.pop(TOPICS["allegro_hand_ros"].words)
    with pytest.raises(RobotError, match=r"nobody listens to .*/lib_cmd within 0\.3 s"):
        driver.connect()


def test_a_hand_that_is_not_heard_from_keeps_its_targets_and_that_is_said(hand):
    driver, _, graph = hand(stale=2.0)
    driver.connect()
    driver.reset()
    target, state = driver.target, TOPICS["penspin"].state
    graph.ears.pop(state)  # its states no longer arrive
    time.sleep(0.2)
    with pytest.raises(RobotError, match=f"no new state on {state}: the hand keeps its last"):
        driver.stop()
    np.testing.assert_array_equal(driver.target, target)
    with pytest.raises(RobotError, match=r"3 stops were not confirmed .*emergency stop"):
        driver.disconnect()
    driver.disconnect()  # the connection is closed all the same


@pytest.mark.parametrize(
    ("ahead", "trusts", "complaint"),
    [(3600.0, True, r"stamped 3[56]\d\d\.\d+ s in the future: .*clocks"), (3600.0, False, None)],
)
def test_a_hand_whose_clock_is_ahead_is_refused_where_its_stamps_count(
    monkeypatch, ahead, trusts, complaint
):
    graph, over = Graph(monkeypatch), threading.Event()
    topics = TOPICS["penspin"]
    states = Publisher(graph, topics.state, Message)
    ear = Subscriber(graph, topics.command, Message, lambda message: None)

    def publish():
        while not over.wait(0.01):
            message = Message()
            message.header.stamp.to_sec = lambda: time.time() + ahead
            message.position = list(HOME)
            states.publish(message)

    thread = threading.Thread(target=publish)
    thread.start()
    driver = AllegroRos(AllegroConfig(trust_stamps=trusts, stale=40.0))
    if complaint is None:
        driver.connect()
        assert 0 <= time.monotonic() - driver.observe().stamp < 1.0
        driver.disconnect()
    else:
        with pytest.raises(RobotError, match=complaint):
            driver.connect()
    over.set()
    thread.join()
    ear.unregister()


def test_a_hand_that_does_not_go_limp_at_once_is_told_again(hand):
    driver, node, _ = hand("allegro_hand_ros")
    driver.connect()
    driver.reset()
    whole, fails = node.hand.limp, [RobotError("the bus is busy")] * 3

    def limp():
        if fails:
            raise fails.pop()
        whole()

    node.hand.limp = limp
    driver.command(driver.target + 0.3)
    driver.stop()
    until = time.monotonic() + 3.0
    while fails or node._is_off:
        assert time.monotonic() < until
        time.sleep(0.01)
    here = node.hand.joints()
    time.sleep(0.1)
    np.testing.assert_allclose(node.hand.joints(), here, atol=1e-6)
    driver.disconnect()


# With ROS.


class Node:
    """A hand node in a process of its own."""

    def __init__(self, env, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "real.drivers.hand_node", *arguments],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout.readline() == "ready\n"

    def end(self):
        """End it; return what it says."""
        self.process.send_signal(signal.SIGTERM)
        return json.loads(self.process.communicate(timeout=10)[0])


@pytest.fixture(scope="module")
def env():
    """A master's environment, which is also this process's while the tests run."""
    patch = pytest.MonkeyPatch()
    with ros.Master() as master:
        for name, value in master.env.items():
            patch.setenv(name, value)
        yield {**os.environ, **master.env}
        ros.load().signal_shutdown("the tests are over")
        gc.collect()
    patch.undo()


@pytest.fixture(scope="module")
def nodes(env):
    """A node of each kind, without physics."""
    found = {name: Node(env, "--topics", name) for name in TOPICS}
    yield found
    for node in found.values():
        node.end()


@pytest.fixture
def drive(nodes):
    """Make drivers, connected and at their start."""
    made = []

    def make(topics="penspin", kind=AllegroRos, **changes):
        changes = {"start_speed": 5.0, "stale": 40.0, **changes}  # the machine may be busy
        config = AllegroConfig(topics=TOPICS[topics], **changes)
        made.append(kind(config))
        made[-1].connect()
        made[-1].reset()
        return made[-1]

    yield make
    for driver in made:
        driver.disconnect()


class Ear:
    """Hears a hand's states with the joints' names, without the driver."""

    def __init__(self, topic):
        self.joints = {}
        rospy, msgs = ros.start_node("penspin"), ros.messages("sensor_msgs")
        self.end = rospy.Subscriber(topic, msgs.JointState, self.hear)
        while not self.joints:
            time.sleep(0.01)

    def hear(self, message):
        self.joints = dict(zip(message.name, message.position, strict=True))


def moved(driver, ear):
    """Return, for each of the driver's channels, the hand's name of the joint that moved."""
    driver.reset({"qpos": np.full(16, 0.35)})  # far from all limits
    found = []
    for i in range(16):
        time.sleep(0.05)  # the joint before may still be on its way
        before, seen = ear.joints, driver.observe().measured
        target = driver.target
        target[i] += 0.15
        driver.command(target)
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            after, sees = ear.joints, driver.observe().measured
            change = {name: abs(after[name] - before[name]) for name in after}
            if max(change.values()) > 0.1 and np.abs(sees - seen).max() > 0.1:
                break
            time.sleep(0.01)
        assert np.argmax(np.abs(sees - seen)) == i  # as the driver sees it
        found.append(max(change, key=lambda name: change[name]))
    return tuple(found)


class Hora(AllegroRos):
    """A driver that takes the hand's order for hora's, in both directions: it sees no fault."""

    def _publish(self, link, target, frame_id):
        super()._publish(link, allegro.to_hora(target), frame_id)

    def _on_state(self, message):
        message = copy.copy(message)  # the ear hears the same one
        message.position = allegro.from_hora(np.array(message.position)).tolist()
        super()._on_state(message)


@needs_ros
def test_rospy_comes_from_the_system_and_everything_else_from_this_python():
    code = (
        "import json, sys; before = set(sys.modules); import logging; "
        "from real.drivers import ros; "
        "ros.load(); ros.messages('sensor_msgs'); "
        "print(json.dumps({n: getattr(m, '__file__', None) for n, m in sys.modules.items() "
        "if '.' not in n and n not in before})); "
        "assert logging.getLoggerClass() is logging.Logger; "
        "import importlib.util; assert importlib.util.find_spec('apt') is None"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = {name: file or "" for name, file in json.loads(said.stdout).items()}
    assert "rospy" in files
    root = ros.find() or ""
    assert {name for name, file in files.items() if root and file.startswith(root)} <= {
        *ros.PACKAGES,
        *ros.NEEDED,
    }
    for name in ("numpy", "yaml"):
        assert files[name].startswith(sys.prefix)


@needs_ros
def test_a_master_that_never_answers_is_an_error():
    code = """
import os, socket
with socket.create_server(("127.0.0.1", 0)) as silent:
    os.environ["ROS_MASTER_URI"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
    from real.drivers import ros
    try:
        ros.start_node("test", timeout=0.5)
    except ros.RosError as error:
        print(error, flush=True)
    os._exit(0)
"""
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "does not register this node: no answer within 0.5 s" in said.stdout


@needs_ros
def test_each_channel_moves_the_joint_of_its_name(drive):
    driver, ear = drive(), Ear(TOPICS["penspin"].state)
    assert moved(driver, ear) == NAMES
    ear.end.unregister()


@needs_ros
def test_a_driver_with_the_wrong_order_moves_other_joints(drive):
    driver, ear = drive(kind=Hora, start=(0.35,) * 16), Ear(TOPICS["penspin"].state)
    assert moved(driver, ear) == tuple(allegro.from_hora(np.array(NAMES)))
    ear.end.unregister()


@needs_ros
def test_targets_arrive_at_the_control_rate_in_order_and_none_is_lost():
    arguments = ["--seconds", "1.5", "--state-rate", "50", "--topics", "allegro_hand_ros"]
    said = subprocess.run(
        [sys.executable, "tests/soak/measure_ros.py", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,  # on a busy machine the rate of so short a time may be off by more than 1 %
    )
    facts = json.loads(said.stdout[: said.stdout.rindex("}") + 1])
    assert facts["targets_lost"] == facts["states_lost"] == 0
    assert facts["targets_received"] == facts["targets_sent"] > 1.5 * 20
    assert facts["target_rate_hz"] == pytest.approx(20.0, rel=0.1)
    assert facts["state_rate_hz"] == pytest.approx(50.0, rel=0.1)
    assert 0 < facts["target_delay_ms"]["p50"] < 20 and 0 < facts["state_delay_ms"]["p50"] < 20
    assert facts["order_of_joints"] == "proven: 16 of 16"


@needs_ros
def test_the_driver_keeps_the_contract(nodes):
    height = External(Feature("height", (), "m"), lambda: np.array(0.6))
    config = AllegroConfig(start_speed=5.0, stale=40.0)
    check_robot(AllegroRos(config, also=[height]))


@needs_ros
def test_the_parts_of_an_observation_are_joints_targets_and_fingertips(drive):
    driver = drive()
    target = driver.command(driver.target + 0.01)
    seen = driver.observe()
    np.testing.assert_array_equal(seen.values["proprio"][16:], target.astype(np.float32))
    np.testing.assert_allclose(seen.values["proprio"][:16], seen.measured, atol=1e-7)
    np.testing.assert_allclose(seen.values["fingertips"], fingertips(seen.measured), atol=1e-7)
    assert 0 <= time.monotonic() - seen.stamp < 0.1


@needs_ros
def test_a_hand_that_falls_silent_is_noticed(drive, nodes):
    driver = drive(stale=2.0, control_dt=0.25)
    process = nodes["penspin"].process
    process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(2.5 * driver.control_dt)
        with pytest.raises(RobotError, match=r"measured 0\.\d+ s ago.*the limit is 0.5 s"):
            driver.observe()
    finally:
        process.send_signal(signal.SIGCONT)
    until = time.monotonic() + 5.0
    while time.monotonic() < until:
        with contextlib.suppress(RobotError):
            driver.observe()
            return
        time.sleep(0.01)
    pytest.fail("it is back, but not for the driver")


@needs_ros
@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"state": "/nobody"}, r"no joint state came on /nobody within 0.5 s: there are .*/joint_"),
        ({"command": "/nobody"}, r"nobody listens to /nobody within 0.5 s"),
        ({"names": tuple(f"j{i}" for i in range(16))}, r"/joint_states_pub: .*unknown.*Topics"),
    ],
)
def test_a_hand_that_is_not_there_is_named(nodes, changes, complaint):
    topics = dataclasses.replace(TOPICS["penspin"], **changes)
    driver = AllegroRos(AllegroConfig(topics=topics, patience=0.5))
    with pytest.raises(RobotError, match=re.compile(complaint, re.S)):
        driver.connect()
    with pytest.raises(RobotError, match="not connected"):
        driver.observe()


@needs_ros
def test_two_hands_on_one_topic_are_refused(env, nodes):
    other = Node(env, "--topics", "penspin")
    with pytest.raises(RobotError, match=r"2 nodes publish /joint_states_pub; one hand has one"):
        AllegroRos(AllegroConfig(stale=40.0)).connect()
    other.end()


@needs_ros
def test_a_start_that_cannot_be_reached_is_refused(drive):
    driver = drive()
    with pytest.raises(RobotError, match=r"the start of thj3 is 9 rad, it must be in"):
        driver.reset({"thj3": np.array(9.0)})
    with pytest.raises(RobotError, match="cannot be started with 'pen'"):
        driver.reset({"pen": np.zeros(7)})
    driver.reset({"ffj1": np.array([0.3])})
    assert driver.target[1] == pytest.approx(0.3) and driver.target[2] == HOME[2]


@needs_ros
def test_a_stopped_hand_stays_where_it_is(drive):
    driver = drive("allegro_hand_ros")
    driver.command(driver.target + 0.3)
    time.sleep(0.02)
    driver.stop()
    time.sleep(0.1)
    here = driver.observe().measured
    assert (here < np.array(HOME) + 0.29).all()  # it would be there by now
    time.sleep(0.2)
    np.testing.assert_allclose(driver.observe().measured, here, atol=0.02)


@needs_ros
def test_the_simulated_hand_and_its_pen_stand_behind_the_topics(env):
    node = Node(env, "--namespace", "twin", "--twin", "pen")
    driver = AllegroRos(AllegroConfig(topics=TOPICS["penspin"].within("twin"), stale=40.0))
    driver.connect()
    driver.reset()
    rate, start = Rate(driver.control_dt), driver.target
    for i in range(20):
        driver.command(start + 0.002 * i)
        rate.wait()
    seen, target = driver.observe().measured, driver.target
    driver.disconnect()
    facts = node.end()
    assert np.median(seen - start) > 0.01 and np.abs(seen - target).max() < 0.3
    assert facts["measures"]["steps"] >= 1  # the pen falls, for nobody balances it
    assert {"turns", "success", "survival"} <= set(facts["measures"])
    assert facts["targets"]["lost"] == facts["targets"]["refused"] == 0
