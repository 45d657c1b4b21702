# ruff: noqa: N818
"""A stand-in for the module `franky` (franky-control 2.0.0), with the names that the driver uses.

`franky_api.json` records these names and their parameters as the real wheel has them; a test holds
this file against the record, and the record against the wheel where that is installed. The arm's
tool goes to its target with a lag, the fingers at their speed until they meet an object. As in
franky, one lock is held across every call but `Robot.stop`; `hang` makes the next call of a kind
hang with that lock in its hands.
"""

import builtins
import enum
import threading
import time
from typing import ClassVar

import numpy as np

LAG = 0.03  # s
HOME = np.array([0.4, 0.0, 0.3])


class Exception(builtins.Exception):
    pass


class NetworkException(Exception):
    pass


class ControlException(Exception):
    pass


class InvalidMotionTypeException(builtins.Exception):
    pass


class MotionReuseException(builtins.Exception):
    pass


class GripperException(builtins.Exception):
    pass


class ReferenceType(enum.Enum):
    Absolute = 0
    Relative = 1


class RealtimeConfig(enum.Enum):
    Enforce = 0
    Ignore = 1


class Affine:
    def __init__(self, translation=(0, 0, 0), quaternion=(0, 0, 0, 1)):
        x, y, z, w = quaternion
        self._matrix = np.eye(4)
        self._matrix[:3, :3] = [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
        self._matrix[:3, 3] = translation

    @property
    def matrix(self):
        return self._matrix.copy()


class Twist:
    def __init__(self, linear_velocity, angular_velocity):
        self._linear, self._angular = np.array(linear_velocity), np.array(angular_velocity)

    @property
    def linear(self):
        return self._linear

    @property
    def angular(self):
        return self._angular


class RobotPose:
    def __init__(self, end_effector_pose):
        self._pose = end_effector_pose

    @property
    def end_effector_pose(self):
        return self._pose


class RobotVelocity:
    def __init__(self, end_effector_twist):
        self._twist = end_effector_twist

    @property
    def end_effector_twist(self):
        return self._twist


class CartesianState:
    def __init__(self, pose, velocity):
        self._pose, self._velocity = pose, velocity

    @property
    def pose(self):
        return self._pose

    @property
    def velocity(self):
        return self._velocity


class CartesianMotion:
    kind = "cartesian"

    def __init__(
        self,
        target,
        reference_type=ReferenceType.Absolute,
        relative_dynamics_factor=1.0,
        return_when_finished=True,
        ee_frame=None,
    ):
        assert reference_type is ReferenceType.Absolute
        frame = np.eye(4) if ee_frame is None else ee_frame.matrix
        self.goal = (target.matrix @ np.linalg.inv(frame))[:3, 3]
        self.down = target.matrix[:3, 2]
        self.ends = return_when_finished


class CartesianStopMotion:
    kind, goal, ends = "cartesian", None, True

    def __init__(self, relative_dynamics_factor=1.0):
        pass


class JointMotion:
    kind, ends = "joints", True

    def __init__(
        self,
        target,
        reference_type=ReferenceType.Absolute,
        relative_dynamics_factor=1.0,
        return_when_finished=True,
    ):
        self.goal = HOME + np.array([target[0], 0.0, 0.0])


class Robot:
    made: ClassVar[list["Robot"]] = []

    def __init__(
        self,
        fci_hostname,
        relative_dynamics_factor=1.0,
        realtime_config=RealtimeConfig.Enforce,
    ):
        if fci_hostname == "nobody":
            raise NetworkException("libfranka: Connection to FCI refused.")
        self.place, self.speed, self.at = HOME + 0.05, np.zeros(3), time.monotonic()
        self.motion, self.used, self.fault = None, [], None
        self.broken = False
        self.lock = threading.RLock()
        self.hang = {}  # name of a call -> (event that it has begun to hang, event that ends that)
        self.stops, self.deaf = 0, 0  # orders to stop that came, and how many more will fail
        Robot.made.append(self)

    def enter(self, call):
        if call in self.hang:
            hangs, release = self.hang.pop(call)
            hangs.set()
            assert release.wait(10.0)

    def hear_stop(self):
        if self.deaf:
            self.deaf -= 1
            raise NetworkException("libfranka: UDP send: network is unreachable")
        self.stops += 1

    def live(self):
        with self.lock:
            now = time.monotonic()
            if self.motion is not None:
                goal = self.place if self.motion.goal is None else self.motion.goal
                away = goal - self.place
                moved = away * -np.expm1((self.at - now) / LAG)
                self.place, self.speed = self.place + moved, away / LAG
                if self.motion.ends and np.abs(goal - self.place).max() < 1e-3:
                    self.motion = None
            if self.motion is None:
                self.speed = np.zeros(3)
            self.at = now

    def check(self):
        if self.fault is not None:
            fault, self.fault, self.motion = self.fault, None, None
            raise ControlException(fault)

    def fail(self, why):
        """What the tests do to it: a reflex."""
        with self.lock:
            self.fault, self.broken, self.motion = why, True, None

    @property
    def has_errors(self):
        return self.broken

    def recover_from_errors(self):
        self.broken, self.fault = False, None
        return True

    @property
    def is_in_control(self):
        with self.lock:
            self.live()
            return self.motion is not None

    @property
    def current_cartesian_state(self):
        with self.lock:
            self.enter("state")
            self.live()
        pose = RobotPose(Affine(self.place, (1, 0, 0, 0)))
        return CartesianState(pose, RobotVelocity(Twist(self.speed, np.zeros(3))))

    def move(self, motion, asynchronous=False):
        assert asynchronous
        with self.lock:
            self.enter("move")
            if motion.goal is None:
                self.hear_stop()
            self.live()
            self.check()
            if any(motion is other for other in self.used):
                raise MotionReuseException("a motion is used once")
            if self.motion is not None and self.motion.kind != motion.kind:
                raise InvalidMotionTypeException("the type of motion must not change in motion")
            self.used = [*self.used[-9:], motion]
            self.motion = motion

    def join_motion(self, timeout=None):
        until = time.monotonic() + (1e9 if timeout is None else timeout)
        while True:
            with self.lock:
                self.live()
                self.check()
                if self.motion is None:
                    return True
            if time.monotonic() > until:
                return False
            time.sleep(0.001)

    def poll_motion(self):
        with self.lock:
            self.live()
            self.check()
            return self.motion is not None

    def stop(self):
        self.hear_stop()
        if self.motion is not None:
            self.fault, self.motion = "Move command preempted!", None


class BoolFuture:
    def __init__(self, until, result):
        self.until, self.result = until, result

    def wait(self, timeout=None):
        left = self.until() - time.monotonic()
        time.sleep(max(0.0, left if timeout is None else min(left, timeout)))
        return time.monotonic() >= self.until()

    def get(self):
        self.wait()
        if isinstance(self.result, builtins.Exception):
            raise self.result
        return self.result


class Gripper:
    made: ClassVar[list["Gripper"]] = []

    def __init__(self, fci_hostname):
        self.goal = self.begin = 0.05
        self.speed, self.began = 0.1, 0.0
        self.object = 0.0
        self.orders, self.next_error, self.dead = [], None, False
        Gripper.made.append(self)

    def now(self):
        gone = self.speed * (time.monotonic() - self.began)
        way = self.goal - self.begin
        return self.begin + np.sign(way) * min(abs(way), gone)

    @property
    def width(self):
        if self.dead:
            raise NetworkException("libfranka gripper: UDP receive: timeout")
        return float(self.now())

    def order(self, width, speed):
        assert not self.orders or time.monotonic() >= self.end(), "one order at a time"
        self.begin, self.goal, self.speed = self.now(), max(width, self.object), speed
        self.began = time.monotonic()
        result, self.next_error = self.next_error or True, None
        return BoolFuture(self.end, result)

    def end(self):
        return self.began + abs(self.goal - self.begin) / self.speed

    def move_async(self, width, speed):
        future = self.order(width, speed)
        self.orders.append(("move", width))
        return future

    def grasp_async(self, width, speed, force, epsilon_inner=0.005, epsilon_outer=0.005):
        future = self.order(width, speed)
        self.orders.append(("grasp", width))
        return future
