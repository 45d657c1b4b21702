"""A YAML file of a robot behind ROS 2: its groups of joints, their topics, units and limits.

transport: rosbridge           # or rclpy
host: 10.0.0.5                 # of the rosbridge server
rate: 50                       # commands/s
groups:
  arm:
    state: /joint_states
    command: /arm_controller/commands
    type: std_msgs/msg/Float64MultiArray
    scale: 0.04                # of an action of 1, for each joint that does not say otherwise
    joints:
      joint1: {ros: panda_joint1, low: -2.9, high: 2.9, start: 0.0}
features:
  qpos: {of: [position]}

The joints' names and order are those of the policy's card, `ros` is what ROS calls one. What ROS
counts is sign * factor * value + offset of what the policy counts.
"""

import difflib
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from penspin_style.features import ActionChannel, Feature
from penspin_style.system.plain_yaml import read_mapping

POSITIONS, TRAJECTORY = "std_msgs/msg/Float64MultiArray", "trajectory_msgs/msg/JointTrajectory"
KINDS = ("position", "velocity", "target", "error")
"""What a feature may hold of its joints; `error` is target less position."""


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """One joint, which is one channel."""

    name: str
    low: float
    high: float
    """Limits of the target, in `unit`."""
    start: float
    scale: float
    """Change, or value, that an action of 1 asks for."""
    ros: str = ""
    """Its name in ROS's messages; empty for the same."""
    unit: str = "rad"
    mode: str = "delta"
    """As of `ActionChannel`."""
    sign: float = 1.0
    factor: float = 1.0
    offset: float = 0.0
    """ROS counts sign * factor * value + offset."""
    speed: float = 0.3
    """On the way to the start, units/s."""
    tolerance: float = 0.1
    """How near to the start it must come."""

    @property
    def channel(self) -> ActionChannel:
        """Return what the driver takes for it."""
        return ActionChannel(self.name, self.unit, self.scale, self.low, self.high, self.mode)

    def to_ros(self, value: float) -> float:
        """Return what ROS counts."""
        return self.sign * self.factor * value + self.offset

    def from_ros(self, value: float) -> float:
        """Return what the policy counts."""
        return self.sign * (value - self.offset) / self.factor

    def check(self) -> None:
        """Refuse limits that are none."""
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        if not self.low <= self.start <= self.high:
            raise ValueError(
                f"start {self.start:g} must be within its limits, {self.low:g} to {self.high:g}"
            )


@dataclass(frozen=True, kw_only=True)
class GroupConfig:
    """Joints that one controller takes, in its order."""

    state: str
    command: str
    """Topics."""
    type: str
    """Of the command's messages: `POSITIONS` or `TRAJECTORY`."""
    joints: tuple[JointConfig, ...]
    reach: float | None = None
    """`time_from_start` of a trajectory's point, s; default a control step."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """A value that the policy reads, of joints."""

    feature: Feature
    of: tuple[str, ...]
    joints: tuple[int, ...]
    """Places among the robot's channels."""


@dataclass(frozen=True, kw_only=True)
class Ros2Config:
    """What the file says."""

    rate: float
    """Commands/s."""
    groups: Mapping[str, GroupConfig]
    features: tuple[FeatureConfig, ...]
    transport: str = "rosbridge"
    host: str = "127.0.0.1"
    port: int = 9090
    stale: float | None = None
    """Seconds after which a measurement is too old; default two control steps."""
    patience: float = 5.0
    """Seconds to wait for the robot's nodes, and for the joints to arrive."""
    trust_stamps: bool = True
    """Whether messages say when they were measured: needs clocks in step, and no simulated time."""

    @property
    def joints(self) -> tuple[JointConfig, ...]:
        """Return all joints, in the channels' order."""
        return tuple(joint for group in self.groups.values() for joint in group.joints)


def read_robot(path: pathlib.Path) -> Ros2Config:
    """Return the robot of a YAML file.

    Raises:
        ValueError: it is not as the module's docstring says; names the file and the key.
    """
    raw = read_mapping(path)
    try:
        return _robot(raw)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


# What each key must be: words for people, and the check.
_Rule = tuple[str, Callable[[Any], bool]]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _above_zero(most: float) -> _Rule:
    return f"a number above 0 and up to {most:g}", lambda v: _is_number(v) and 0 < v <= most


def _one_of(*legal: Any) -> _Rule:
    return f"one of {', '.join(map(str, legal))}", lambda v: any(
        v == each and isinstance(v, bool) is isinstance(each, bool) for each in legal
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and bool(value.strip())


_NUMBER: _Rule = "a finite number", _is_number
_NAME: _Rule = "a text", _is_name
_TOPIC: _Rule = (
    "a topic, as /joint_states",
    lambda v: isinstance(v, str) and bool(re.fullmatch(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*", v)),
)
_MAPPING: _Rule = "a mapping that is not empty", lambda v: isinstance(v, dict) and bool(v)
_SHARED: Mapping[str, _Rule] = {
    "unit": _NAME,
    "scale": _above_zero(1e6),
    "mode": _one_of("delta", "absolute"),
    "sign": _one_of(1, -1),
    "factor": _above_zero(1e9),
    "speed": _above_zero(1e6),
    "tolerance": _above_zero(1e6),
}
"""Keys of a joint that its group may say for all."""
_JOINT = {"ros": _NAME, "low": _NUMBER, "high": _NUMBER, "start": _NUMBER, "offset": _NUMBER}
_JOINT |= _SHARED
_GROUP = {"state": _TOPIC, "command": _TOPIC, "type": _one_of(POSITIONS, TRAJECTORY)}
_GROUP |= {"joints": _MAPPING, "reach": _above_zero(10.0)} | _SHARED
_FEATURE: Mapping[str, _Rule] = {
    "of": (f"a list of {', '.join(KINDS)}", lambda v: _are(v, lambda k: k in KINDS)),
    "joints": ("a joint, or a list of joints", lambda v: _is_name(v) or _are(v, _is_name)),
    "unit": _NAME,
}
_ROBOT: Mapping[str, _Rule] = {
    "transport": _one_of("rosbridge", "rclpy"),
    "host": ("a host's name or address", lambda v: _is_name(v) and not re.search(r"[\s/@?#]", v)),
    "port": ("1 to 65535", lambda v: isinstance(v, int) and 0 < v < 65536 and v is not True),
    "rate": _above_zero(1000.0),
    "stale": _above_zero(10.0),
    "patience": _above_zero(600.0),
    "trust_stamps": _one_of(True, False),
    "groups": _MAPPING,
    "features": _MAPPING,
}


def _are(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(fits(item) for item in value)


def _checked(
    raw: Any, rules: Mapping[str, _Rule], needed: Iterable[str], where: str
) -> dict[str, Any]:
    """Return a mapping whose keys and values are what the rules say.

    where: put before what is wrong, as `groups.arm: `.

    Raises:
        ValueError: they are not.
    """
    if not isinstance(raw, dict):
        raise ValueError(f"{where}it must be a mapping of {', '.join(rules)}; it is {raw!r:.60}")
    for key, value in raw.items():
        if key not in rules:
            near = difflib.get_close_matches(key, rules, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(rules)}"
            raise ValueError(f"{where}there is no key {key!r}; {hint}")
        what, fits = rules[key]
        if not fits(value):
            raise ValueError(f"{where}{key} must be {what}, got {value!r:.60}")
    for key in needed:
        if key not in raw:
            raise ValueError(f"{where}{key} is missing: {rules[key][0]}")
    return raw


def _robot(raw: dict[str, Any]) -> Ros2Config:
    values = dict(_checked(raw, _ROBOT, ("rate", "groups", "features"), ""))
    if values.get("transport") == "rclpy":
        for key in ("host", "port"):
            if key in values:
                raise ValueError(f"{key} is for transport rosbridge; rclpy has ROS_DOMAIN_ID")
    groups = {name: _group(name, group) for name, group in values.pop("groups").items()}
    joints = [joint for group in groups.values() for joint in group.joints]
    _check_once([joint.name for joint in joints], "joint")
    _check_once([group.command for group in groups.values()], "command topic")
    names = [joint.name for joint in joints]
    features = tuple(_feature(n, f, names, joints) for n, f in values.pop("features").items())
    return Ros2Config(**values, groups=groups, features=features)


def _check_once(names: list[str], what: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"groups: the {what} {name!r} is there {names.count(name)} times")


def _group(name: str, raw: Any) -> GroupConfig:
    where = f"groups.{name}: "
    values = dict(_checked(raw, _GROUP, ("state", "command", "type", "joints"), where))
    if "reach" in values and values["type"] != TRAJECTORY:
        raise ValueError(f"{where}reach is for type {TRAJECTORY}")
    shared = {key: values.pop(key) for key in _SHARED if key in values}
    made = [_joint(n, j, shared, f"groups.{name}.joints.") for n, j in values["joints"].items()]
    _check_once([joint.ros for joint in made], "ROS joint")
    return GroupConfig(**{**values, "joints": tuple(made)})


def _joint(name: str, raw: Any, shared: Mapping[str, Any], where: str) -> JointConfig:
    own = _checked(raw, _JOINT, ("low", "high", "start"), f"{where}{name}: ")
    values = {"ros": name, **shared, **own}
    if "scale" not in values:
        raise ValueError(f"{where}{name}: scale is missing, of the joint or of its group")
    joint = JointConfig(name=name, **values)
    try:
        joint.check()
    except ValueError as error:
        raise ValueError(f"{where}{name}: {error}") from error
    return joint


def _feature(name: str, raw: Any, names: list[str], joints: list[JointConfig]) -> FeatureConfig:
    where = f"features.{name}: "
    values = _checked(raw, _FEATURE, ("of",), where)
    which = values.get("joints", names)
    for joint in [which] if isinstance(which, str) else which:
        if joint not in names:
            near = difflib.get_close_matches(joint, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
            raise ValueError(f"{where}there is no joint {joint!r}; {hint}")
    places = tuple(names.index(j) for j in ([which] if isinstance(which, str) else which))
    of = tuple(values["of"])
    count = len(of) * len(places)
    shape = () if isinstance(which, str) and count == 1 else (count,)
    unit = values.get("unit", joints[places[0]].unit)
    return FeatureConfig(feature=Feature(name, shape, unit), of=of, joints=places)
