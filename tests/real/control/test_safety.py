"""The limits between a policy and a robot, by hand and under attack; what a driver says."""

from collections import Counter

import numpy as np
import pytest
import torch

from penspin_style.deploy.actions import Decoder
from penspin_style.features import ActionChannel
from real.control.safety import Limits, SafeRobot, TargetLimiter
from real.robot import Observation, RobotError, StoppedError
from tests.soak.attack_guard import attack
from tests.support.guarded import CHANNELS, DT, Fake, safe


def limiter(at=(0.0, 0.0), **limits):
    """One whose channels may move 0.1 m in a step, unless told otherwise."""
    out = TargetLimiter(Limits.of(CHANNELS, DT, **{"velocity": 1.0, **limits}), DT)
    out.begin(np.array(at))
    return out


def path(limiter, wanted, steps):
    """Targets sent for a constant target, channel x."""
    return [limiter.check(np.array([wanted, 0.0]))[0] for _ in range(steps)]


# Limits, by hand.


def test_a_step_is_as_long_as_the_velocity_allows_and_ends_at_the_position_limit():
    assert path(limiter((0.75, 0.0), acceleration=1e9), 5.0, 4) == pytest.approx(
        [0.85, 0.95, 1.0, 1.0]
    )
    assert path(limiter((0.75, 0.0), acceleration=1e9), -5.0, 2) == pytest.approx([0.65, 0.55])


def test_a_step_grows_and_shrinks_by_no_more_than_the_acceleration_allows():
    # 4 m/s^2: 0.04 m more or less in each step, up to 0.1 m
    it = limiter(acceleration=4.0)
    assert path(it, 5.0, 4) == pytest.approx([0.04, 0.12, 0.22, 0.32])
    assert path(it, -5.0, 4) == pytest.approx([0.38, 0.40, 0.38, 0.32])


def test_the_guard_brakes_before_the_position_limit():
    # 2 m/s^2: 0.02 m. From 0.1 m per step braking takes 0.08 + 0.06 + 0.04 + 0.02 = 0.2 m
    it = limiter(acceleration=2.0)
    steps = np.diff([0.0, *path(it, 5.0, 40)])
    assert steps.max() == pytest.approx(0.1)
    assert it.last[0] == pytest.approx(1.0, abs=1e-6) and it.last[0] <= 1.0
    assert np.abs(np.diff([0.0, *steps])).max() <= 0.02
    # and not sooner than it must: the sum until the limit is reached is the shortest that can be
    assert np.count_nonzero(steps > 1e-6) <= 4 + 6 + 5 + 1


def test_what_is_within_the_limits_passes_bit_for_bit_and_counts_nothing():
    rng, it = np.random.default_rng(0), limiter(velocity=None)
    decoder = Decoder(CHANNELS)
    for _ in range(500):
        target = decoder.decode(rng.choice([-1.0, -0.3, 0.0, 1.0], 2), it.last)
        # the default limits are those of the card's own actions
        assert np.array_equal(it.check(target), target)
    assert it.interventions == Counter()


def test_default_limits_leave_every_action_of_a_policy_alone():
    hand = [ActionChannel("j", "rad", 1 / 24, -0.27924, 1.727825, "delta")]
    it, decoder = TargetLimiter(Limits.of(hand, 0.05), 0.05), Decoder(hand)
    it.begin(np.array([0.5]))
    rng = np.random.default_rng(0)
    for _ in range(3000):
        target = decoder.decode(rng.choice([-1.0, 1.0], 1), it.last)
        assert np.array_equal(it.check(target), target)
    assert not it.interventions


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ([np.nan, 0.0], "nonfinite"),
        ([0.0, np.inf], "nonfinite"),
        ([0.0], "shape"),
        ([[0.0, 0.0]], "shape"),
        (None, "shape"),
        ("ab", "shape"),
        ([None, None], "shape"),
        (np.zeros(2, bool), "shape"),
        (np.zeros(2, complex), "shape"),
        ([10**400, 0], "shape"),
        (np.array([np.longdouble("1e4000"), 0]), "nonfinite"),
        (torch.zeros(2, requires_grad=True), "shape"),
    ],
)
def test_what_is_no_target_brakes_and_holds_and_is_never_forwarded(bad, why):
    it = limiter(acceleration=4.0)
    path(it, 5.0, 3)
    # 0.1 m per step, then 0.06 and 0.02, then back to where it was when the target failed
    sent = [it.check(bad)[0] for _ in range(2)]
    assert sent == pytest.approx([0.28, 0.30])
    assert it.interventions[why] == 2


@pytest.mark.parametrize(
    ("wanted", "why"),
    [(1.5, "position"), (0.9, "velocity"), (0.05, "acceleration")],
)
def test_interventions_are_counted_by_their_reason(wanted, why):
    it = limiter(acceleration=4.0)
    it.check(np.array([wanted, 0.0]))
    assert it.interventions[why] == 1


def test_a_robot_that_stands_outside_its_limits_is_refused_unless_a_step_leads_inside():
    with pytest.raises(RobotError, match="outside its limits"):
        limiter((1.2, 0.0))
    it = limiter((1.05, 0.0))
    assert it.check(np.array([1.05, 0.0]))[0] == 1.0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"velocity": 0.0}, "velocity must be positive"),
        ({"acceleration": -1.0}, "acceleration must be positive"),
        ({"velocity": np.nan}, "velocity must be"),
        ({"patience": 0.0}, "patience must be positive"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
        ({"velocity": 1e-16}, "lost in rounding"),
    ],
)
def test_limits_that_no_robot_can_honour_are_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        limiter(**change)


def test_infinite_velocity_and_acceleration_leave_the_position_limit():
    it = limiter(velocity=np.inf, acceleration=np.inf)
    assert path(it, 0.9, 1) == [0.9]
    assert path(it, -7.0, 2) == [pytest.approx(-1.0), -1.0]


# Limits, attacked.


@pytest.mark.parametrize("acceleration", [None, 1.7, 0.2], ids=["default", "gentle", "gentlest"])
def test_no_attack_leads_outside(acceleration):
    found = attack(7000, acceleration=acceleration)
    assert found["outside"] == {"position": 0, "velocity": 0, "acceleration": 0, "not finite": 0}
    assert {"position", "velocity", "acceleration", "nonfinite", "shape"} <= {
        *found["interventions"]
    }


def test_the_attack_finds_a_limiter_that_has_a_hole(monkeypatch):
    whole, rng = TargetLimiter.limited, np.random.default_rng(0)

    def leaky(self, wanted, *, count=True):
        sent = whole(self, wanted, count=count)
        return sent + rng.choice([-1e-7, 1e-7], len(sent))  # a ten-millionth of a radian

    monkeypatch.setattr(TargetLimiter, "limited", leaky)
    outside = attack(2000, acceleration=1.7)["outside"]
    assert min(outside["position"], outside["velocity"], outside["acceleration"]) > 0


def test_limits_hold_across_holds_and_resets():
    rng = np.random.default_rng(1)
    robot, fake = safe(velocity=1.0, acceleration=1.0)
    limits = robot.limits
    for _ in range(300):
        kind = rng.integers(8)
        if kind == 0:
            fake.now += 0.95 * DT
            robot.hold()
        elif kind == 1:
            fake.at = rng.uniform(-1.0, 1.0, 2)
            robot.reset()
        else:
            robot.command(rng.uniform(-3.0, 3.0, 2))
    checked, past = 0, []
    for entry in fake.log:
        if isinstance(entry, tuple):
            past = []  # the robot went elsewhere by itself
        elif isinstance(entry, str):
            past = past[-1:] * 2  # it held
        else:
            past = [*past, entry][-3:]
            assert (np.abs(entry) <= 1.0).all()
            if len(past) > 1:
                assert (np.abs(past[-1] - past[-2]) <= limits.velocity * DT).all()
            if len(past) > 2:
                change = (past[-1] - past[-2]) - (past[-2] - past[-3])
                assert (np.abs(change) <= limits.acceleration * DT**2).all()
                checked += 1
    assert checked > 100


# The robot behind the limiter.


def test_a_command_returns_what_the_robot_really_sent_and_the_limits_count_from_there():
    robot, fake = safe(velocity=1.0, acceleration=1e9)
    fake.moves = lambda target: np.round(target, 1) - 0.02
    assert robot.command(np.array([0.5, 0.0])).tolist() == pytest.approx([0.08, -0.02])
    assert robot.target.tolist() == pytest.approx([0.08, -0.02])
    fake.moves = lambda target: target
    assert robot.command(np.array([0.5, 0.0]))[0] == pytest.approx(0.18)


def test_a_driver_that_sends_no_numbers_is_stopped():
    robot, fake = safe()
    fake.moves = lambda target: target * np.nan
    with pytest.raises(StoppedError, match="its driver says"):
        robot.command(np.zeros(2))
    assert fake.log[-1] == "stop"


def test_a_stopped_robot_takes_commands_again_after_a_reset():
    robot, fake = safe()
    robot.stop()
    with pytest.raises(StoppedError, match=r"told to stop; reset\(\) it"):
        robot.command(np.zeros(2))
    robot.hold()
    assert fake.log[-1] == "stop"
    robot.reset({"x": np.ones(1)})
    assert fake.log[-1] == ("reset", {"x": np.ones(1)})
    assert robot.command(np.zeros(2)).tolist() == [0.0, 0.0]


def test_nothing_is_sent_before_the_first_reset():
    robot = SafeRobot(Fake())
    with pytest.raises(StoppedError, match="has not been reset"):
        robot.command(np.zeros(2))


def test_only_invalid_targets_for_too_long_stop_the_robot():
    robot, fake = safe(patience=0.35)
    for _ in range(3):
        robot.command(np.full(2, np.nan))
    robot.command(np.zeros(2))
    sent = [robot.command(np.full(2, np.nan)).tolist() for _ in range(4)]
    assert sent == [[0.0, 0.0]] * 4
    with pytest.raises(StoppedError, match=r"no valid target for 0\.35 s"):
        robot.command(np.full(2, np.nan))
    assert fake.log[-1] == "stop"


def test_a_joint_that_does_not_follow_holds_the_robot_then_stops_it_by_name():
    robot, fake = safe(tolerance=0.25, patience=0.36)
    fake.measured = np.zeros(2)  # y is stuck
    sent = []
    with pytest.raises(StoppedError, match=r"y has been more than 0\.25 from its target"):
        for step in range(40):
            robot.observe()
            sent.append(robot.command(np.array([0.0, 0.1 * (step + 1)]))[1])
    # farther than 0.25 m after 0.3 s; held 0.36 s later, so after 0.7 s; stopped after 1.1 s
    assert sent[:7] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    assert sent[7:] == [sent[6]] * 4
    assert robot.interventions["self_check"] == 4
    assert fake.log[-1] == "stop"


def test_a_joint_that_follows_again_releases_the_robot():
    robot, fake = safe(tolerance=0.25, patience=0.15)
    fake.measured = np.full(2, np.nan)  # an encoder that says nothing is not believed either
    for _ in range(2):
        robot.observe()
        robot.command(np.array([0.1, 0.0]))
    robot.observe()
    assert robot.command(np.array([0.2, 0.0]))[0] == 0.1
    fake.measured = np.array([0.1, 0.0])
    robot.observe()
    assert robot.command(np.array([0.2, 0.0]))[0] == 0.2


def test_commands_that_come_too_fast_do_not_speed_the_robot_up():
    robot, fake = safe(velocity=1.0, acceleration=1e9)
    fake.command = lambda target: (fake.log.append(target), target.copy())[1]  # takes no time
    for _ in range(1000):
        fake.now += DT / 10
        robot.command(np.array([1.0, 0.0]) * 9)
    travelled = sum(isinstance(entry, np.ndarray) for entry in fake.log)
    # 100 control steps, five in a hundred more, and two at once at the beginning
    assert 100 <= travelled <= 107
    assert robot.interventions["rate"] == 1000 - travelled


def test_a_pause_is_a_rest():
    robot, fake = safe(velocity=1.0, acceleration=4.0)
    for _ in range(4):
        robot.command(np.array([9.0, 0.0]))
    fake.now += 1.0
    assert robot.command(fake.at)[0] == fake.log[-2][0]  # nothing left to brake


def test_a_hold_brakes_step_by_step_as_the_acceleration_allows():
    robot, fake = safe(velocity=1.0, acceleration=4.0)
    for _ in range(3):
        robot.command(np.array([9.0, 0.0]))
    fake.log.clear()
    for _ in range(4):
        robot.hold()
        robot.hold()  # as often as one likes
    moves = [entry[0] for entry in fake.log if isinstance(entry, np.ndarray)]
    assert moves == pytest.approx([0.28, 0.30])
    assert fake.log[2:] == ["hold"] * (len(fake.log) - 2)


# What a driver says.


@pytest.mark.parametrize(
    "said",
    [
        np.array([1.01, 0.0]),  # outside the limits
        np.array([0.0, -7.0]),
        np.array([0.25, 0.0]),  # farther than a step from what was asked, 0.1
        np.zeros(3),
        np.array([np.inf, 0.0]),
        None,
        "sent",
        [[0.1, 0.0], [0.1, 0.0]],
    ],
)
def test_a_driver_that_says_it_sent_what_cannot_be_is_stopped(said):
    robot, fake = safe(velocity=1.0, acceleration=1e9)
    fake.command = lambda target: said
    with pytest.raises(StoppedError, match=r"its driver says that it sent .* was to be sent"):
        robot.command(np.array([0.1, 0.0]))
    assert fake.log[-1] == "stop" and "its driver says" in robot.reason
    with pytest.raises(StoppedError):
        robot.command(np.zeros(2))


def test_a_driver_may_round_to_single_precision_at_a_limit():
    robot, fake = safe(Fake((0.95, 0.0)))
    robot.limiter.limits.high.setflags(write=False)
    fake.moves = lambda target: np.nextafter(target.astype(np.float32), np.float32(2)).astype(float)
    robot.command(np.array([1.0, 0.0]))
    assert robot.command(np.array([1.0, 0.0]))[0] > 1.0 and not robot.reason


@pytest.mark.parametrize(
    "stamp",
    [
        lambda now: now + 3600.0,
        lambda now: now - 3600.0,
        lambda now: 1e6 - now,  # backwards
        lambda now: 0.0,
        lambda now: float("nan"),
        lambda now: float("inf"),
    ],
    ids=["ahead", "behind", "backwards", "frozen", "nan", "infinite"],
)
def test_no_time_stamp_switches_the_comparison_with_the_measured_joints_off(stamp):
    robot, fake = safe(tolerance=0.25, patience=0.36)
    fake.observe = lambda: Observation({}, stamp(fake.now), np.zeros(2))  # y is stuck
    with pytest.raises(StoppedError, match=r"y has been more than 0\.25 from its target"):
        for step in range(40):
            robot.observe()
            robot.command(np.array([0.0, 0.1 * (step + 1)]))
    # farther than 0.25 m after 0.3 s; then twice 0.36 s, up to the next step
    assert fake.now <= 0.3 + 0.8 + 1e-9 and fake.log[-1] == "stop"


def test_measurements_of_another_shape_are_not_compared_but_stop_the_robot():
    robot, fake = safe(tolerance=0.25, patience=0.36)
    fake.observe = lambda: Observation({}, fake.now, np.zeros((2, 1)))
    with pytest.raises(StoppedError, match="more than"):
        for _ in range(20):
            robot.observe()
            robot.command(np.zeros(2))
    assert fake.now == pytest.approx(0.8)


def test_measurements_that_are_repeated_for_too_long_stop_the_robot():
    robot, fake = safe(tolerance=0.25, patience=0.36)
    frozen = []
    fake.observe = lambda: Observation({}, frozen[0] if frozen else fake.now, fake.at.copy())
    for _ in range(20):  # a frame that is lost now and then is no fault
        frozen[:] = [] if len(fake.log) % 3 else [fake.now - DT]
        robot.observe()
        robot.command(np.zeros(2))
    frozen[:] = [fake.now]
    with pytest.raises(StoppedError, match=r"it has measured nothing new for 0\.8"):
        for _ in range(20):
            robot.observe()
            robot.command(np.zeros(2))
    assert robot.interventions["self_check"] > 0
