"""A Franka arm (Panda, FR3) with its hand, on franky-control: the tool goes where it is told.

Targets are the tool centre point in the arm's base frame, gripper pointing down, and how far the
gripper is open, 0 to 1, as in the cards of `panda_lift_cube`. The arm plans its way to each new
target with its own limits on velocity, acceleration and jerk, and stays there until the next one.

Stopped, an arm brakes and keeps its place: a limp one would fall. It does not let go what it holds.

`franky` is imported by `connect`, not before. pip install 'penspin_style[franka]'
"""

import contextlib
import importlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penspin_style.features import Feature
from real.drivers import external
from real.drivers.described import Described
from real.drivers.franka_gripper import Gripper, errors_of
from real.drivers.start_pose import start_pose
from real.robot import Observation, RequestError, RobotError, check_target, stop_surely
from tasks.robots.panda import description
from tasks.robots.panda.description import ARM, FINGER_OPEN, LOWER, UPPER, WORKSPACE

LIMITS = {name: (low, high) for name, low, high in zip(ARM, LOWER, UPPER, strict=False)}
"""rad, of the arm's joints."""
_TURN = 0.005
"""Seconds that a stop waits for a call of franky that is under way."""
DOWN = (*description.DOWN[1:], description.DOWN[0])
"""Quaternion x, y, z, w of a hand that points to the floor, its fingers closing along y."""


@dataclass(frozen=True)
class FrankaConfig:
    """How to drive an arm."""

    host: str
    """Address of the arm's controller."""
    control_dt: float = description.CONTROL_DT
    """Seconds between two commands."""
    low: tuple[float, ...] = tuple(low for low, _ in WORKSPACE)
    high: tuple[float, ...] = tuple(high for _, high in WORKSPACE)
    """Workspace of the tool centre point, m, in the base frame."""
    move_scale: float = description.MOVE_SCALE
    """Metres that the target moves for an action of 1."""
    grip_scale: float = description.GRIP_SCALE
    """Share of the gripper's stroke that its target moves for an action of 1."""
    start: tuple[float, ...] = description.HOME[: len(ARM)]
    """The arm's joints at the start, rad."""
    tool: float = description.TOOL
    """The policy's tool centre point along the z of the end effector that the arm is set up with,
    m. Simulated, it is 0.1 m before the hand; the Franka hand's end effector is at 0.1034 m."""
    dynamics: float = 0.3
    """Share of the arm's limits on velocity, acceleration and jerk that it uses."""
    start_dynamics: float = 0.05
    """The same on the way to the start."""
    grip_speed: float = 0.1
    """m/s."""
    grip_force: float = 20.0
    """N."""
    grip_step: float = 0.02
    """Change of the opening below which the gripper is left alone."""
    realtime: bool = True
    """Whether this computer must have a real-time kernel; without it the arm may stop at times."""
    patience: float = 30.0
    """Seconds that the way to the start may take."""


class FrankaRobot(Described):
    """The arm; see `real.robot.Robot`. Its target is x, y, z of the tool, m, and the opening."""

    called = "the arm"
    joints = ARM

    def __init__(self, config: FrankaConfig, *, also: Sequence[external.External] = ()) -> None:
        """Describe an arm without connecting to it.

        also: values from elsewhere, as where the cube is and what a camera sees.
        """
        self.config = config
        own = (
            Feature("tcp_pos", (3,), "m"),
            Feature("tcp_vel", (3,), "m/s"),
            Feature("target_error", (3,), "m"),
            Feature("gripper", (), "m"),
            Feature("gripper_target", (), "1"),
        )
        channels = description.tool_actions(
            move_scale=config.move_scale,
            grip_scale=config.grip_scale,
            workspace=tuple(zip(config.low, config.high, strict=True)),
        )
        super().__init__(own, also, channels, config.control_dt)
        self._turn = threading.RLock()  # of franky: held across its calls, not waited for to stop
        self._state = threading.Lock()  # of what is noted here: never held across a call
        self._franky: Any = None
        self._arm: Any = None
        self._gripper: Gripper | None = None

    def connect(self) -> None:
        """Open the connections to arm and hand; again is no error.

        Raises:
            RobotError: franky is not installed, or nobody answers.
        """
        if self._arm is not None:
            return
        franky = self._franky = load_franky()
        kernel = franky.RealtimeConfig
        with self._told("connect to the arm"):
            self._arm = franky.Robot(
                self.config.host,
                relative_dynamics_factor=self.config.dynamics,
                realtime_config=kernel.Enforce if self.config.realtime else kernel.Ignore,
            )
        try:
            with self._told("connect to the hand"):
                cfg = self.config
                self._gripper = Gripper(
                    franky, cfg.host, cfg.grip_speed, cfg.grip_force, cfg.grip_step
                )
            self.sensors.start()
        except RobotError:
            self._hang_up()
            raise

    def disconnect(self) -> None:
        """Brake and hang up; again is no error.

        Raises:
            RobotError: it is not confirmed that it has braked. Without its connection it stops.
        """
        if self._arm is None:
            return
        try:
            stop_surely(self.stop)
        finally:
            self._hang_up()

    def reset(self, start: Mapping[str, np.ndarray] | None = None) -> None:
        """Recover from errors, go to the start pose, open the gripper.

        start: `qpos` (7,) rad in place of the configuration's joints, or single joints by name.

        Raises:
            RobotError: not connected, an unknown name, a pose outside the joints' limits, it does
                not arrive, or its tool is not in the workspace there.
        """
        goal = start_pose(start, self.config.start, LIMITS)
        arm, gripper = self._connected()
        with self._state:
            self._stopped, self._target = "", None
        with self._turn, self._told("go to its start"):
            if arm.has_errors and not arm.recover_from_errors():
                raise RobotError("the arm does not recover from its errors; see its Desk")
            self._brake(arm)
            motion = self._franky.JointMotion(
                goal, relative_dynamics_factor=self.config.start_dynamics
            )
            self._check_running()
            arm.move(motion, asynchronous=True)
        self._arrive(arm, gripper)
        with self._turn, self._told("be read"):
            place = self._tool()[0]
        low, high = np.array(self.config.low), np.array(self.config.high)
        if (np.maximum(low - place, place - high) > 0.02).any():
            raise RobotError(
                f"the tool starts at {np.round(place, 3).tolist()} m, outside of its workspace "
                f"{list(self.config.low)} to {list(self.config.high)}"
            )
        self._follow(np.array([*np.clip(place, low, high), 1.0]), gripper)

    def observe(self) -> Observation:
        """Return what arm, hand and the other sources measure now.

        Before the first reset there is no target: the measured values stand in for it.

        Raises:
            RobotError: not connected, or arm or hand do not answer.
        """
        _, gripper = self._connected()
        opening = gripper.opening()
        with self._turn, self._told("be read"):
            place, velocity = self._tool()
        now = time.monotonic()
        measured = np.array([*place, opening])
        target = measured if self._target is None else self._target
        own = {
            "tcp_pos": place,
            "tcp_vel": velocity,
            "target_error": target[:3] - place,
            "gripper": np.array(FINGER_OPEN * opening),
            "gripper_target": np.array(target[3]),
        }
        values = {name: value.astype(np.float32) for name, value in own.items()}
        return Observation({**values, **self.sensors.read()}, now, measured)

    def command(self, target: np.ndarray) -> np.ndarray:
        """Send the tool to x, y, z m and open the gripper; return the targets within the limits.

        Raises:
            StoppedError: the arm is stopped.
            RobotError: not connected or not reset, not 4 finite numbers, or the arm has an error.
        """
        wanted = np.clip(check_target(target, self.channels), self._low, self._high)
        with self._turn:
            arm, gripper = self._connected()
            self._check_running()
            if self._target is None:
                raise RobotError("reset the arm before the first command")
            with self._told("follow"):
                arm.poll_motion()
                if arm.has_errors:
                    raise RobotError("the arm has stopped with an error; reset() recovers it")
                tool = self._franky.Affine([0.0, 0.0, self.config.tool])
                motion = self._franky.CartesianMotion(
                    self._franky.Affine(wanted[:3], list(DOWN)),
                    self._franky.ReferenceType.Absolute,
                    return_when_finished=False,
                    ee_frame=tool,
                )
                self._check_running()
                arm.move(motion, asynchronous=True)
        self._follow(wanted, gripper)
        return wanted.copy()

    def hold(self) -> None:
        """Do nothing: the arm stays at its last target by itself."""

    def stop(self) -> None:
        """Brake; the gripper keeps what it has. Again is no error.

        Raises:
            RobotError: the arm is not told, or still moves.
        """
        with self._state:
            self._stopped = self._stopped or "the arm was stopped; reset it to go on"
            arm, gripper = self._arm, self._gripper
            if gripper is not None:
                gripper.goal = None
        if arm is not None:
            with self._told("stop"):
                self._brake(arm)

    def _follow(self, target: np.ndarray, gripper: Gripper) -> None:
        """Note a target that the arm has been sent; brake again if a stop came before it."""
        with self._state:
            if not self._stopped:
                gripper.goal, self._target = float(target[3]), target
                return
        self.stop()
        self._check_running()

    def _brake(self, arm: Any) -> None:
        """Let the arm come to rest, smoothly if it can.

        A call that hangs may have franky's own lock, which every one but `stop` waits for.

        Raises:
            RobotError: it still moves.
        """
        if self._ease(arm):
            return
        arm.stop()
        with contextlib.suppress(*errors_of(self._franky)):  # that it was interrupted
            arm.join_motion(1.0)
        if arm.is_in_control:
            raise RobotError(f"the arm at {self.config.host} still moves")

    def _ease(self, arm: Any) -> bool:
        """Brake smoothly; return whether the arm rests."""
        if not self._turn.acquire(timeout=_TURN):
            return False
        try:
            if not arm.is_in_control:
                return True
            arm.move(self._franky.CartesianStopMotion(), asynchronous=True)
        except errors_of(self._franky):  # another kind of motion runs, or it has failed
            return False
        finally:
            self._turn.release()
        with contextlib.suppress(*errors_of(self._franky)):
            return bool(arm.join_motion(1.0))
        return False

    def _hang_up(self) -> None:
        self.sensors.close()
        if self._gripper is not None:
            self._gripper.close()
        self._arm = self._gripper = self._target = None

    def _tool(self) -> tuple[np.ndarray, np.ndarray]:
        """Return place, m, and velocity, m/s, of the tool centre point in the base frame."""
        state = self._connected()[0].current_cartesian_state
        pose, twist = state.pose.end_effector_pose.matrix, state.velocity.end_effector_twist
        arm = self.config.tool * pose[:3, 2]
        return pose[:3, 3] + arm, twist.linear + np.cross(twist.angular, arm)

    def _arrive(self, arm: Any, gripper: Gripper) -> None:
        until = time.monotonic() + self.config.patience
        with self._told("go to its start"):
            while not self._stopped and not arm.join_motion(0.05):
                if time.monotonic() > until:
                    self.stop()
                    raise RobotError(f"no arrival within {self.config.patience:g} s")
        with self._state:
            if not self._stopped:
                gripper.goal = 1.0
        while not self._stopped and gripper.opening() < 0.9:
            if time.monotonic() > until:
                raise RobotError("the gripper does not open; has it been homed?")
            time.sleep(0.02)
        if self._stopped:
            self.stop()  # it may have come before the arm was sent on its way
            self._check_running()

    def _connected(self) -> tuple[Any, Gripper]:
        arm, gripper = self._arm, self._gripper
        if arm is None or gripper is None:
            raise RobotError("the arm is not connected: call connect() first")
        return arm, gripper

    @contextlib.contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say in our words what franky could not do."""
        try:
            yield
        except errors_of(self._franky) as error:
            raise RobotError(f"the arm at {self.config.host} cannot {what}: {error}") from error


def arm_at(address: str, *, also: Sequence[external.External] = ()) -> FrankaRobot:
    """Return the driver of the arm at an address.

    Raises:
        ValueError: it is empty.
    """
    if not address:
        raise ValueError("the arm's address is missing: say franka:ADDRESS")
    return FrankaRobot(FrankaConfig(address), also=also)


def load_franky() -> Any:
    """Import and return franky.

    Raises:
        RequestError: it is not installed.
    """
    try:
        return importlib.import_module("franky")
    except ImportError as error:
        raise RequestError(
            f"the Franka driver needs franky-control ({error}): pip install 'penspin_style[franka]'"
        ) from error
