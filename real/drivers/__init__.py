"""Drivers of real robots, by their names on the command line."""

import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names alone are wanted by the command line's help, at once
    from real.drivers.external import External
    from real.robot import Driver

DRIVERS = {
    "allegro_ros": "real.drivers.allegro_ros:penspin_hand",
    "allegro_hand_ros": "real.drivers.allegro_ros:wonik_hand",
    "aloha_ros": "real.drivers.aloha_ros:two_arms",
    "franka": "real.drivers.franka:arm_at",
    "ros2": "real.drivers.ros2:robot_of",
}
"""Name -> `module:function` that makes the driver of an address, imported when it is asked for."""


def open_driver(name: str, address: str = "", *, also: "Sequence[External]" = ()) -> "Driver":
    """Return the driver of a robot, not yet connected.

    name: one of `DRIVERS`. address: what follows it after a colon; empty for none. also:
        values from beside the robot, as what cameras see.

    Raises:
        ValueError: the driver needs an address, or cannot be given this one.
    """
    return pkgutil.resolve_name(DRIVERS[name])(address, also=also)
