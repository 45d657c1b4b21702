"""The ROS topics of Allegro hands' nodes, and the joints in their messages.

| preset | targets | states | words |
| --- | --- | --- | --- |
| `penspin` | `/cmd_joint_states` | `/joint_states_pub` | |
| `allegro_hand_ros` | `/allegroHand_0/joint_cmd` | `/allegroHand_0/joint_states` | `../lib_cmd` |

Targets and states are sensor_msgs/JointState with `position` in rad. PenSpin's targets are latched,
in a queue of 100, with name [`grasp1`] and frame_id `grasp`, or `init` on the way to the start. The
other preset is the node of felixduvallet/allegro-hand-ros, and Wonik's: the word `off` makes the
hand limp. PenSpin's node knows no such word: stopped, the hand keeps the joints where they are.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from real.drivers import ros
from real.robot import RobotError

NAMES = tuple(f"joint_{i}.0" for i in range(16))
"""What the hand's nodes call the joints, in the order of `JOINTS`."""


@dataclass(frozen=True)
class Topics:
    """Where a hand's node listens and speaks, and how."""

    command: str
    """Topic of the targets."""
    state: str
    """Topic of the measured joints."""
    names: tuple[str, ...] = NAMES
    """The node's names of the sixteen joints, in the order of `JOINTS`."""
    command_name: tuple[str, ...] | None = None
    """What stands in `name` of a target; None for the joints' names."""
    frame_id: str = ""
    start_frame_id: str = ""
    """`header.frame_id` of a target, and of one on the way to the start pose."""
    latch: bool = False
    queue_size: int = 3
    words: str = ""
    """Topic of std_msgs/String that takes words; empty for none."""
    off: str = "off"
    """The word that makes the hand limp."""

    def within(self, namespace: str) -> "Topics":
        """Return the same topics in a ROS namespace, as `/left`; empty for none.

        Raises:
            ValueError: ROS has no such names.
        """
        command, state = (ros.namespaced(namespace, t) for t in (self.command, self.state))
        words = ros.namespaced(namespace, self.words) if self.words else ""
        return replace(self, command=command, state=state, words=words)


TOPICS = {
    "penspin": Topics(
        "/cmd_joint_states",
        "/joint_states_pub",
        command_name=("grasp1",),
        frame_id="grasp",
        start_frame_id="init",
        latch=True,
        queue_size=100,
    ),
    "allegro_hand_ros": Topics(
        "/allegroHand_0/joint_cmd",
        "/allegroHand_0/joint_states",
        words="/allegroHand_0/lib_cmd",
    ),
}


def in_order(
    names: Sequence[str], positions: Sequence[float], known: Sequence[str] = NAMES
) -> np.ndarray:
    """Return the positions (16,) of a joint state in the order of `known`.

    names: may be empty; the positions are in order then.

    Raises:
        RobotError: a name is unknown, missing or there twice; not one position for each; one is not
            finite.
    """
    if names:
        twice = sorted({name for name in names if list(names).count(name) > 1})
        unknown, missing = sorted(set(names) - set(known)), sorted(set(known) - set(names))
        faults = (("unknown", unknown), ("missing", missing), ("there twice", twice))
        if found := [f"{what}: {which}" for what, which in faults if which]:
            raise RobotError(
                f"the joints of this state are not the hand's: {'; '.join(found)}. Give the names "
                "of its node in Topics.names, index, middle, ring, thumb"
            )
    if len(positions) != len(known):
        raise RobotError(f"a state must have {len(known)} positions, this has {len(positions)}")
    values = np.array(positions, float)
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise RobotError(f"position {at} of this state is {values[at]}")
    if names:
        place = {name: i for i, name in enumerate(names)}
        values = values[[place[name] for name in known]]
    return values
