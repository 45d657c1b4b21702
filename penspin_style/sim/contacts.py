"""How groups of geoms touch each other, alike on every engine, through MuJoCo's contact sensors.

    GRIP = Contact("grip", ("left_pad", "right_pad"), ("box",))

    def spec(self):       GRIP.add_to(spec)                    # before it is compiled
    def start(self, sim): self.grip = GRIP.view(sim)
    def reward(self, sim, action):
        self.grip.force   # (num_envs, 2, 3) N in the world's frame, that the others exert on each

The engines lay out their arrays of contacts differently, sensors they serve alike: of each pair the
net force over all its contacts (`reduce="netforce"`, `data="found force"`), which is in the world's
frame, as a single contact's would not be. Like other forces these are of the last substep: what
acted, and between what, in its beginning; after `Sim.forward`, of the state as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mujoco
from torch import Tensor

from penspin_style.sim.sim import Sim

_FOUND, _FORCE = (
    1 << int(field)
    for field in (mujoco.mjtConDataField.mjCONDATA_FOUND, mujoco.mjtConDataField.mjCONDATA_FORCE)
)
_NETFORCE = 3
_SIZE = 4  # numbers of a pair: whether, and three of force


@dataclass(frozen=True)
class Contact:
    """Which geoms are asked for what touches them."""

    name: str
    geoms: Sequence[str]
    others: Sequence[str]
    """The geoms that count as touching."""

    def add_to(self, spec: mujoco.MjSpec) -> None:
        """Add a sensor for each pair of the groups.

        Raises:
            ValueError: a geom is not there, or a group is empty.
        """
        known = {geom.name for geom in spec.geoms}
        missing = [name for name in (*self.geoms, *self.others) if name not in known]
        if missing or not self.geoms or not self.others:
            what = f"there is no geom {missing[0]!r}" if missing else "a group is empty"
            raise ValueError(f"contact {self.name!r}: {what}; there are {sorted(known - {''})}")
        for geom in self.geoms:
            for other in self.others:
                spec.add_sensor(
                    name=self._pair(geom, other),
                    type=mujoco.mjtSensor.mjSENS_CONTACT,
                    objtype=mujoco.mjtObj.mjOBJ_GEOM,
                    objname=geom,
                    reftype=mujoco.mjtObj.mjOBJ_GEOM,
                    refname=other,
                    intprm=[_FOUND | _FORCE, _NETFORCE, 1],
                )

    def view(self, sim: Sim) -> "ContactView":
        """Return what these sensors say in a simulation whose model has them.

        Raises:
            ValueError: its model has not.
        """
        ids = [
            mujoco.mj_name2id(sim.model, mujoco.mjtObj.mjOBJ_SENSOR, self._pair(geom, other))
            for geom in self.geoms
            for other in self.others
        ]
        if min(ids) < 0:
            raise ValueError(f"contact {self.name!r} is not in the model: call add_to in spec()")
        first = int(sim.model.sensor_adr[ids[0]])
        columns = sim.data.sensordata[:, first : first + _SIZE * len(ids)]
        pairs = columns.unflatten(1, (len(self.geoms), len(self.others), _SIZE))
        return ContactView(pairs)

    def _pair(self, geom: str, other: str) -> str:
        return f"{self.name}:{geom}:{other}"


class ContactView:
    """Always of the simulation as it is."""

    def __init__(self, pairs: Tensor) -> None:
        """pairs: (num_envs, geoms, others, 4), a view of `sensordata`."""
        self._pairs = pairs

    @property
    def touching(self) -> Tensor:
        """Which geoms any of the others touches, (num_envs, geoms) bool."""
        return (self._pairs[..., 0] > 0).any(dim=2)

    @property
    def force(self) -> Tensor:
        """Force on each geom, (num_envs, geoms, 3) N in the world's frame; 0 without contact."""
        return -self._pairs[..., 1:].sum(dim=2)

    @property
    def pair_force(self) -> Tensor:
        """The same for each of the others by itself, (num_envs, geoms, others, 3)."""
        return -self._pairs[..., 1:]
