"""What differs between episodes of the Real2Sim task, in four groups that can be switched off."""

from dataclasses import dataclass, field
from typing import Any

from penspin_style.config import require
from penspin_style.env.task import Latency, ObsTerm
from penspin_style.sim.randomize import Randomize

POSITIONS = ("ee_pose", "object_pose", "object_to_ee", "object_to_goal", "goal")
"""Terms that are measured by cameras, or through them."""
_MOST_LOST = 4  # observations in a row, beyond which odds are neglected


def _check_range(key: str, low_high: list[float], least: float = 0.0) -> None:
    low, high = (*low_high, *[-1.0] * 2)[:2]
    ok = len(low_high) == 2 and least <= low <= high
    require(ok, f"task.randomization.{key}", low_high, f"[low, high], {least:g} <= low <= high")


@dataclass
class Physics:
    """Drawn at each reset."""

    on: bool = True
    mass: list[float] = field(default_factory=lambda: [0.7, 1.3])
    """Factor of the object's, with its inertia."""
    friction: list[float] = field(default_factory=lambda: [0.7, 1.2])
    """Of the object, whatever it touches."""
    damping_ratio: list[float] = field(default_factory=lambda: [0.5, 1.0])
    """Of the object's contacts (`solref`): below 1 it bounces. MuJoCo has no restitution. Below 0.5
    contacts would be too stiff for the timestep."""
    joint_damping: list[float] = field(default_factory=lambda: [0.9, 1.1])
    """Factor, each of the arm's joints its own."""

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("mass", "friction", "joint_damping"):
            _check_range(f"physics.{key}", getattr(self, key), 0.01)
        _check_range("physics.damping_ratio", self.damping_ratio, 0.5)


@dataclass
class Visual:
    """Drawn at each reset, only where there is a camera."""

    on: bool = True
    light: list[float] = field(default_factory=lambda: [0.3, 0.9])
    """The lamp's diffuse colour."""
    light_angle: float = 0.35
    """rad, the most by which its direction is turned."""
    colour: list[float] = field(default_factory=lambda: [0.4, 1.0])
    """Of table and floor, each channel its own."""
    camera_pos: float = 0.02
    """m, half width of the front camera's place; a quarter of it is the wrist camera's."""
    camera_angle: float = 0.05
    """rad, the most by which each is turned."""

    def __post_init__(self) -> None:
        """Check the values."""
        _check_range("visual.light", self.light)
        _check_range("visual.colour", self.colour)
        for key in ("light_angle", "camera_pos", "camera_angle"):
            value = getattr(self, key)
            require(value >= 0, f"task.randomization.visual.{key}", value, ">= 0")


@dataclass
class Sensor:
    """Of the observation; images have theirs from `algo.augment`."""

    on: bool = False
    noise: float = 0.003
    """m, and quaternions' numbers: half width of what is added to poses and positions."""
    delay: list[int] = field(default_factory=lambda: [0, 1])
    """Control steps that poses and positions arrive late, drawn at each reset."""
    dropout: float = 0.05
    """Share of observations that are lost: the last one that arrived is seen again."""

    def __post_init__(self) -> None:
        """Check the values."""
        key = "task.randomization.sensor"
        require(self.noise >= 0, f"{key}.noise", self.noise, ">= 0")
        require(0 <= self.dropout < 1, f"{key}.dropout", self.dropout, "in [0, 1)")
        ok = len(self.delay) == 2 and 0 <= self.delay[0] <= self.delay[1]
        require(ok, f"{key}.delay", self.delay, "[fewest, most]")


@dataclass
class Objects:
    """Which object an episode is about, and how large it is."""

    on: bool = True
    shape: bool = True
    """Draw one of `task.objects` at each reset; without, each environment keeps its own."""
    size: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    """Factors of the length, one of which is drawn; the density stays."""
    torsion: list[float] = field(default_factory=lambda: [0.5, 2.0])
    """Factor of the friction against turning on the spot: soft materials have more."""
    colour: list[float] = field(default_factory=lambda: [0.2, 1.0])
    """Of the object, each channel its own; only where there is a camera."""

    def __post_init__(self) -> None:
        """Check the values."""
        key = "task.randomization.object"
        ok = bool(self.size) and min(self.size) > 0
        require(ok, f"{key}.size", self.size, "factors > 0, at least one")
        _check_range("object.torsion", self.torsion)
        _check_range("object.colour", self.colour)


@dataclass
class Randomization:
    """The four groups. `task.randomize=false` switches all but the sensors' off."""

    physics: Physics = field(default_factory=Physics)
    visual: Visual = field(default_factory=Visual)
    sensor: Sensor = field(default_factory=Sensor)
    object: Objects = field(default_factory=Objects)

    def rows(self, *, sees: bool) -> list[Randomize]:
        """Return the table's rows; sees: whether there is a camera."""
        physics, thing, visual = self.physics, self.object, self.visual
        hulls, rgb = "object_hull_.*", slice(0, 3)
        rows: list[Randomize] = []
        if physics.on:
            rows += [
                _row("body_mass", "object", physics.mass, operation="scale"),
                _row("geom_friction", hulls, physics.friction, column=0, shared=True),
                _row("geom_solref", hulls, physics.damping_ratio, column=1, shared=True),
                _row("dof_damping", "joint[1-7]", physics.joint_damping, operation="scale"),
            ]
        if thing.on:
            soft = {"operation": "scale", "column": 1, "shared": True}
            rows.append(_row("geom_friction", hulls, thing.torsion, **soft))
        if thing.on and sees:
            rows.append(_row("geom_rgba", "object_visual", thing.colour, column=rgb))
        if visual.on and sees:
            place = [-visual.camera_pos, visual.camera_pos]
            turned = {"operation": "turn"}
            rows += [
                _row("mat_rgba", "table|floor", visual.colour, column=rgb),
                _row("light_diffuse", ".*", visual.light, shared=True),
                _row("light_dir", ".*", [0.0, visual.light_angle], **turned),
                _row("cam_pos", "front", place, operation="add"),
                _row("cam_pos", "wrist", [0.25 * x for x in place], operation="add"),
                _row("cam_quat", "front|wrist", [0.0, visual.camera_angle], **turned),
            ]
        return rows

    def sensed(
        self, observation: dict[str, dict[str, ObsTerm]]
    ) -> tuple[dict[str, dict[str, ObsTerm]], dict[str, Latency]]:
        """Return groups with the sensors' noise and delays, and how late their terms arrive.

        A lost observation is one that arrives after the next: how late what is seen is has the
        odds of so many losses in a row.
        """
        sensor = self.sensor
        groups = {
            group: {
                name: ObsTerm(sensor.noise, (sensor.delay[0], sensor.delay[1]), term.history)
                if name in POSITIONS
                else term
                for name, term in terms.items()
            }
            for group, terms in observation.items()
        }
        lost = sensor.dropout
        weights = [(1.0 - lost) * lost**k for k in range(_MOST_LOST + 1)]
        return groups, {group: Latency(weights) for group in groups} if lost else {}


def _row(field: str, names: str, low_high: list[float], **settings: Any) -> Randomize:
    low, high = low_high
    return Randomize(field, names, low=low, high=high, **settings)
