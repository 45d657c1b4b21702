"""Drivers of real robots, by their names on the command line."""

import pkgutil
from typing import Protocol

from real.robot import Robot

DRIVERS = {
    "allegro_ros": "real.drivers.allegro_ros:penspin_hand",
    "allegro_hand_ros": "real.drivers.allegro_ros:wonik_hand",
    "franka": "real.drivers.franka:arm_at",
}
"""Name -> `module:function` that makes the driver of an address, imported when it is asked for."""


class Driver(Robot, Protocol):
    """A robot that a name on the command line opens."""

    @property
    def joints(self) -> tuple[str, ...]:
        """Names of the joints that `reset` can be given by themselves."""
        ...


def open_driver(name: str, address: str = "") -> Driver:
    """Return the driver of a robot, not yet connected.

    name: one of `DRIVERS`. address: what follows it after a colon; empty for none.

    Raises:
        ValueError: the driver needs an address, or cannot be given this one.
    """
    return pkgutil.resolve_name(DRIVERS[name])(address)
