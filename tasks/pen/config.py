"""Numbers of the pen tasks: what is published, and what a training may choose instead."""

from dataclasses import dataclass, field

from penspin_style.env.task import ObsTerm, TaskConfig
from tasks.robots.allegro import description as hand

PRIVILEGED = (
    *("pen_pos", "pen_scale", "pen_mass", "pen_friction", "pen_com", "pen_quat", "pen_angvel"),
    *("tip_pos", "pen_restitution", "tactile"),
)
"""What the teacher is told beside the joints: 61 numbers."""
INVARIANT = (
    *("joint_pos", "target_error", "joint_vel", "pen_offset", "pen_line", "pen_linvel"),
    *("pen_rate", "tip_offset", "tip_across", "tip_gap", "tip_along"),
    *("pen_size", "pen_mass", "pen_friction", "pen_restitution"),
)
"""A teacher's observation that a roll of the pen, or a swap of its ends, does not change: 99
numbers."""
UNITS = {
    "proprio": "rad",
    "pen_pos": "m",
    "pen_scale": "1",
    "pen_mass": "kg",
    "pen_friction": "1",
    "pen_com": "m",
    "pen_quat": "1",
    "pen_angvel": "rad/s",
    "tip_pos": "m",
    "pen_restitution": "1",
    "tactile": "1",
    "pen_points": "m",
    "fingertips": "m",
    "pen_ends": "m",
    "joint_pos": "rad",
    "target_error": "rad",
    "joint_vel": "rad/s",
    "pen_offset": "m",
    "pen_line": "1",
    "pen_linvel": "m/s",
    "pen_rate": "rad/s",
    "tip_offset": "m",
    "tip_across": "m",
    "tip_gap": "m",
    "tip_along": "m",
    "pen_size": "m",
}
"""Every term that can be observed -> its unit."""
PHYSICS = ("published", "fast")


@dataclass
class PenConfig(TaskConfig):
    """Numbers of the pen tasks."""

    control_dt: float = hand.CONTROL_DT
    episode_length: int = 400
    reward: dict[str, float] = field(
        default_factory=lambda: {
            "rotate": 1.0,
            "over_speed": -0.3,
            "linvel": -0.3,
            "pose_diff": -0.1,
            "torque": -0.1,
            "work": -1.0,
            "z_spread": -1.0,
            "position": -0.1,
            # not published
            "alive": 0.0,
            "drop": 0.0,
            "posture": 0.0,
            "sides": 0.0,
        }
    )
    observation: dict[str, dict[str, ObsTerm]] = field(default_factory=dict)
    """Empty for what `observes` says, less what the three switches below take away."""
    observes: str = "published"
    """What a teacher reads: `published`, or `invariant`, what a roll of the pen and a swap of its
    ends do not change."""
    privileged: bool = True
    """Whether the teacher is told the group `privileged`."""
    tactile: bool = True
    """Whether the 32 tactile channels are in it."""
    point_cloud: bool = True
    """Whether the teacher is told the group `points`."""
    lag: int = 1
    """Control steps that measured joints and targets arrive late."""
    action_scale: float = hand.ACTION_SCALE
    """Radians that a joint's target moves for an action of 1."""
    joint_noise: list[float] = field(default_factory=lambda: [0.01, 0.005])
    """Standard deviations on the measured joints, rad: of an episode, of a control step."""
    action_noise: list[float] = field(default_factory=lambda: [0.01, 0.005])
    """Standard deviations on the targets, rad: of an episode, of a physics step."""
    push_probability: float = 0.25
    """Odds of a new push in each of two physics steps of a control step; 0 for none ever."""
    push_scale: float = 2.0
    """Standard deviation of a push as an acceleration, m/s^2."""
    push_decay: float = 0.9
    """What is left of a push after `push_interval` seconds of pushing."""
    push_interval: float = 0.08
    scales: list[float] = field(default_factory=lambda: [0.28, 0.29])
    """Nominal sizes of the pens, by turns; each has a cache of grasps."""
    scale_jitter: float = 0.025
    """Half width of the sizes around the nominal ones."""
    tactile_hold: float = 0.2
    """Odds that a tactile channel repeats its last value."""
    tactile_dropout: float = 0.1
    """Odds that a channel that is on reads off."""
    lowest: float = 0.605
    """The episode ends when the pen's centre is below this height, m,"""
    lowest_end: float = 0.56
    """when its lower end is below this one,"""
    highest_end: float = 0.71
    """or when its upper end is above this one."""
    grasps: str = ""
    """Folder with a cache of grasps per scale; empty for those that come with the tasks."""
    paid_rate: float = 0.5
    """Rotation, rad/s, beyond which `rotate` pays no more, either way."""
    free_rate: float = 1.0
    """Rotation, rad/s, beyond which `over_speed` costs."""
    work_limit: float = 1e6
    """Largest value of `work`, W^2."""
    difficulty: float = 1.0
    """Width of all randomisation and noise: 1 as published, 0 for one nominal pen without noise."""
    physics: str = "published"
    """`published`, or `fast`: a capsule, 10 ms, no touch sensors; for trainings, about twice as
    many steps a second. It holds what the published one holds in nine of ten grasps."""
    balanced: bool = False
    """Whether all angles of the pen are equally likely at first, not all cached grasps."""
    sides: int = 1
    """How often a grasp is used, but for once with the pen rolled and its ends perhaps swapped."""

    def __post_init__(self) -> None:
        """Fill in the published observation; refuse invalid values."""
        if self.lag < 0:
            raise ValueError(f"task.lag must be >= 0, got {self.lag}")
        for key, legal in (("observes", ("published", "invariant")), ("physics", PHYSICS)):
            if getattr(self, key) not in legal:
                one = " or ".join(legal)
                raise ValueError(f"task.{key} must be {one}, got {getattr(self, key)!r}")
        if not 0 <= self.difficulty <= 1:
            raise ValueError(f"task.difficulty must be in [0, 1], got {self.difficulty}")
        if self.observation and self.observation != self.published():
            for name in ("privileged", "tactile", "point_cloud"):
                if not getattr(self, name):
                    raise ValueError(
                        f"task.{name}=false changes nothing, for task.observation is given: take "
                        "the terms out of it"
                    )
        else:
            self.observation = self.published()
        super().__post_init__()
        for name in ("joint_noise", "action_noise"):
            noise = getattr(self, name)
            if len(noise) != 2 or min(noise) < 0:
                raise ValueError(f"task.{name} must be two standard deviations >= 0, got {noise}")
        for name in ("push_probability", "tactile_hold", "tactile_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"task.{name} must be in [0, 1], got {getattr(self, name)}")
        if not self.scales or min(self.scales) - self.scale_jitter <= 0 or self.scale_jitter < 0:
            got = f"{self.scales} and {self.scale_jitter}"
            raise ValueError(f"task.scales, less task.scale_jitter >= 0, must be > 0, got {got}")

    def published(self) -> dict[str, dict[str, ObsTerm]]:
        """Return the teacher's observation groups."""
        if self.observes == "invariant":
            return {"teacher": {name: ObsTerm() for name in INVARIANT}}
        groups = {"teacher": {"proprio": ObsTerm(delay=(self.lag, self.lag), history=3)}}
        if self.privileged:
            told = [name for name in PRIVILEGED if self.tactile or name != "tactile"]
            groups["privileged"] = {name: ObsTerm() for name in told}
        if self.point_cloud:
            groups["points"] = {"pen_points": ObsTerm()}
        return groups
