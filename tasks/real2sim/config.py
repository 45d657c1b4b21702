"""The numbers of the Real2Sim task."""

import math
from dataclasses import dataclass, field

from penspin_style.config import require
from penspin_style.env.task import Camera, Latency, ObsTerm, TaskConfig
from tasks.real2sim.randomization import Randomization
from tasks.real2sim.shipped import TRAINING
from tasks.robots.panda import description

OBSERVED = ("ee_pose", "object_pose", "object_to_ee", "object_to_goal", "gripper", "object_size")
"""The 25 numbers, in their order."""
HANDS = ("open", "closed", "any")
REWARDS = ("dense", "sparse")
OBSERVATIONS = ("state", "rgb_and_state")
IMAGES = ("front_rgb", "front_depth", "wrist_rgb", "wrist_depth")
STUDENT = ("ee_pose", "gripper", "goal")
"""What a robot knows by itself, and where the object is wanted; images come on top."""


def _terms() -> dict[str, dict[str, ObsTerm]]:
    return {"teacher": {name: ObsTerm() for name in OBSERVED}}


@dataclass
class Config(TaskConfig):
    """Numbers of the task."""

    control_dt: float = description.CONTROL_DT
    episode_length: int = 200
    reward: dict[str, float] = field(
        default_factory=lambda: {
            **{"reach": 0.3, "lift": 0.5, "carry": 1.0, "release": 0.5, "placed": 2.0},
            **{"sparse": 1.0, "custom": 1.0},
        }
    )
    observation: dict[str, dict[str, ObsTerm]] = field(default_factory=_terms)
    objects: list[str] = field(default_factory=lambda: list(TRAINING))
    """Names of shipped objects, or folders; see `penspin_style.meshes.folder`."""
    reward_type: str = "dense"
    """`dense`, or `sparse`: 1 in steps of success, -1 in all others."""
    reward_fn: str = ""
    """A function of your own, module:function, in place of both: it is given the terms above, the
    action and the success of all environments by name, and returns (num_envs,) rewards."""
    hand_at_end: str = "open"
    """What success asks of the hand: `open`, `closed` or `any`."""
    goal_height: list[float] = field(default_factory=lambda: [0.0, 0.0])
    """m, lowest and highest that the goal is above where the object would stand there."""
    goal_distance: float = 0.03
    """m between object and goal that count as success."""
    rest_speed: float = 0.05
    """m/s below which the object is at rest."""
    rest_spin: float = 0.5
    """rad/s below which it is."""
    open_above: float = 0.036
    """m, of a finger's travel from which the hand is open."""
    least_way: float = 0.12
    """m, the least from start to goal."""
    object_yaw: float = math.pi / 4
    """Half width of the object's initial yaw, rad, about how it is narrow between the fingers."""
    joint_noise: float = 0.05
    """Half width of the noise on the arm's initial joints, rad."""
    action_scale: float = 0.1
    """rad that an arm joint's target moves for an action of 1."""
    grip_scale: float = 0.01
    """m that a finger's target moves for an action of 1."""
    observation_type: str = "state"
    """`state`, or `rgb_and_state`: a group `student` with an image, beside the teacher's."""
    vision_enabled: bool = False
    """The same as `observation_type=rgb_and_state`."""
    camera_resolution: list[int] = field(default_factory=lambda: [64, 64])
    """Height and width of the images."""
    camera_images: list[str] = field(default_factory=lambda: [IMAGES[0]])
    """Which there are: colour and depth of the camera in front of the robot and of its wrist's."""
    randomization: Randomization = field(default_factory=Randomization)
    skin: bool = False
    """Draw the Menagerie's meshes of the arm instead of our primitives."""

    def __post_init__(self) -> None:
        """Refuse invalid values; let the cameras follow from what is observed."""
        for key, legal in (
            *(("reward_type", REWARDS), ("hand_at_end", HANDS)),
            ("observation_type", OBSERVATIONS),
        ):
            value = getattr(self, key)
            require(value in legal, f"task.{key}", repr(value), f"one of {', '.join(legal)}")
        low, high = (*self.goal_height, -1.0, -1.0)[:2]
        ok = len(self.goal_height) == 2 and 0 <= low <= high <= 0.4
        require(ok, "task.goal_height", self.goal_height, "[lowest, highest], 0 <= both <= 0.4 m")
        ok = self.hand_at_end != "open" or high == 0.0
        legal = "[0, 0] with task.hand_at_end=open: what is let go in the air falls"
        require(ok, "task.goal_height", self.goal_height, legal)
        shape = self.camera_resolution
        ok = len(shape) == 2 and min(shape) > 0
        require(ok, "task.camera_resolution", shape, "[height, width] in pixels")
        legal = f"one or more of {', '.join(IMAGES)}, each once"
        ok = bool(self.camera_images) and len(set(self.camera_images)) == len(self.camera_images)
        ok = ok and set(self.camera_images) <= set(IMAGES)
        require(ok, "task.camera_images", self.camera_images, legal)
        used = dict.fromkeys(name.rpartition("_")[0] for name in self.camera_images)
        self.cameras = {name: Camera(*shape) for name in used} if self.sees else {}
        groups = self.observation.items()
        seeing = {name for name, terms in groups if not terms.keys().isdisjoint(IMAGES)}
        if not self.sees:
            self.observation = {name: terms for name, terms in groups if name not in seeing}
        elif not seeing:
            self.observation["student"] = {
                name: ObsTerm() for name in (*STUDENT, *self.camera_images)
            }
        super().__post_init__()

    @property
    def sees(self) -> bool:
        """Whether there is a camera."""
        return self.vision_enabled or self.observation_type == "rgb_and_state"

    def sensed(self) -> tuple[dict[str, dict[str, ObsTerm]], dict[str, Latency]]:
        """Return groups and latencies, those of the sensors' group of the randomisation if on."""
        if not self.randomization.sensor.on:
            return super().sensed()
        return self.randomization.sensed(self.observation)
