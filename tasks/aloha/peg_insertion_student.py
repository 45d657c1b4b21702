"""Put a peg into a socket by two wrist cameras: MuJoCo Playground's `AlohaPegInsertionDistill`.

The world, the starts at the table and the noise are those of `aloha_peg_insertion`. The student
acts from the first step to the last; nothing ends an episode early but an object that is lost or
tilted by more than 80 degrees. It sees 33 numbers, as `description.proprioception` computes them of
a robot, and two 32 x 32 images of each wrist camera, all 0 to 3 control steps late together:

| term | numbers |
| --- | --- |
| left_qpos, right_qpos | 8 each: six joints, two fingers |
| left_tracking_error, right_tracking_error | 8 each: those less the targets, the gripper's twice |
| has_switched | 1 once both hands have been above `switch_height` |

**Success**: as in `aloha_peg_insertion`; where an object is hidden there is none.

What is there now is labelled by the task's script (`algo.teacher=expert`, `pick_policy` empty), or
by two policies: before the switch by `pick_policy`, for each arm apart (`label`), after it by
`algo.teacher`. Their actions mean other changes than the student's, of which 1 is 0.02 rad or m:
each is scaled to the same command. An arm whose object is hidden, a share
`hold_out` of them, is to do nothing.

What this does otherwise than upstream:

* noise of the measured joints is symmetric, of the published width: 0.05 rad to either side;
* places, colours, cameras and lights are drawn at every reset, not once for the run, and the
  table's gray is among what changes;
* no light's shadow is drawn: the renderer has none here. A spot's direction follows its gripper and
  the light above is directional, so the place varies of the former and the direction of the latter.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import mujoco
import torch
from torch import Tensor

from penspin_style.env.task import Camera, Latency, ObsTerm
from penspin_style.sim.randomize import Randomize
from penspin_style.sim.sim import Sim
from tasks.aloha import arms, one_arm, peg_insertion
from tasks.aloha.peg_insertion import STATE, Insertion
from tasks.aloha.picker import Picker
from tasks.robots.aloha import description

CAMERAS = tuple(f"wrist_cam_{side}" for side in description.SIDES)
IMAGES = tuple(f"{camera}_{kind}" for camera in CAMERAS for kind in ("rgb", "depth"))
PROPRIOCEPTION = (
    *(f"{side}_qpos" for side in description.SIDES),
    *(f"{side}_tracking_error" for side in description.SIDES),
    "has_switched",
)
HIDDEN = ((-0.4, 0.33), (0.4, 0.33))
"""m, x and y of a hidden socket and of a hidden peg: where its own arm's camera does not look."""
CLOSING = 0.5 * (description.GRIPPER_CLOSED + description.GRIPPER_OPEN)
"""m, the command below which a hand closes."""


@dataclass
class Config(peg_insertion.Config):
    """Numbers of the task. `window` and `ring_starts` are the teacher's alone."""

    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: {
            "teacher": {name: ObsTerm() for name in STATE},
            "student": {name: ObsTerm() for name in (*PROPRIOCEPTION, *IMAGES)},
        }
    )
    cameras: dict[str, Camera] = field(default_factory=lambda: {name: Camera() for name in CAMERAS})
    latency: dict[str, Latency] = field(default_factory=lambda: {"student": Latency()})
    noise: one_arm.Noise = field(
        default_factory=lambda: one_arm.Noise(joint_pos=0.05, object_angle=7.5)
    )
    """Alike in both groups; published joints are 0 to 0.1 rad off for the student."""
    action_scale: float = description.ACTION_SCALE
    """rad that a joint's target moves for an action of 1: what both teachers do fits in."""
    gripper_scale: float = description.ACTION_SCALE
    """m that a gripper's does. With a smaller one, labels of the pick are cut off at 1."""
    ring_starts: float = 0.0
    hold_out: float = 0.07
    """Share of episodes in which the socket is hidden, and, drawn apart, of those in which the peg
    is."""
    visual_randomization: bool = True
    """Draw colours, lights and cameras anew at every reset."""

    def __post_init__(self) -> None:
        """Refuse invalid values."""
        super().__post_init__()
        if not 0 <= self.hold_out <= 1:
            raise ValueError(f"task.hold_out must be in [0, 1], got {self.hold_out}")


class PegInsertionStudent(Insertion[Config]):
    """See the module's docstring."""

    Config = Config
    picks_itself = False
    units: ClassVar[dict[str, str]] = {
        **Insertion.units,
        **{f"{side}_tracking_error": "1" for side in description.SIDES},
        "has_switched": "1",
    }

    def spec(self) -> mujoco.MjSpec:
        """Return the teacher's world as the cameras see it: without themselves and highlights.

        A camera that is moved by a few millimetres would look at its own housing from within. The
        ray tracer pays for highlights in every pixel.
        """
        spec = super().spec()
        for side in description.SIDES:
            for geom in spec.body(f"{side}_gripper_base").geoms:
                if geom.material in (f"{side}_camera", f"{side}_glass"):
                    geom.group = 4
        spec.visual.headlight.specular = [0.0] * 3
        for light in spec.lights:
            light.specular = [0.0] * 3
        return spec

    def randomize(self) -> list[Randomize]:
        """Vary what everything looks like, within the published ranges."""
        rows = super().randomize()
        if not self.cfg.visual_randomization:
            return rows
        walls = "socket_(bottom|top|left|right)"
        red = "peg|socket_back"
        turn = math.radians(5.0)
        return [
            *rows,
            Randomize("geom_rgba", names=walls, column=2, low=0.5, high=1.0),
            Randomize(
                "geom_rgba", names=walls, column=slice(0, 2), operation="add", low=0.0, high=0.12
            ),
            Randomize("geom_rgba", names=red, column=0, low=0.0, high=1.0),
            Randomize(
                "geom_rgba", names=red, column=slice(1, 3), operation="add", low=0.0, high=0.07
            ),
            Randomize(
                "geom_rgba", names="table", column=slice(0, 3), low=0.0, high=0.1, shared=True
            ),
            Randomize(
                *("cam_pos", "wrist_cam_.*"),
                column=0,
                operation="add",
                low=-0.0125,
                high=0.0125,
            ),
            Randomize(
                *("cam_pos", "wrist_cam_.*"),
                column=slice(1, 3),
                operation="add",
                low=-0.005,
                high=0.005,
            ),
            Randomize("cam_quat", "wrist_cam_.*", operation="turn", low=0.0, high=turn),
            Randomize("light_pos", ".*_spot", operation="add", low=-1.0, high=1.0),
            Randomize("light_dir", "top", operation="turn", low=0.0, high=math.radians(10.0)),
        ]

    def start(self, sim: Sim) -> None:
        """Look up and allocate what the teacher's task does; the student has one scale."""
        super().start(sim)
        self.pick_factor = self.pick_scale / self.targets.scale
        self.pick_scale = self.targets.scale
        self.labeller: Picker | None = None
        self.listed = {name for terms in self.cfg.observation.values() for name in terms}
        self.memory["hidden"] = torch.zeros(
            sim.num_envs, len(HIDDEN), dtype=torch.bool, device=sim.device
        )

    def reset(self, sim: Sim, mask: Tensor, rng: torch.Generator) -> None:
        """Begin as the teacher does; hide a share of the objects."""
        super().reset(sim, mask, rng)
        hidden = self.memory["hidden"]
        draw = torch.rand(hidden.shape, generator=rng, device=sim.device) < self.cfg.hold_out
        hidden.copy_(torch.where(mask[:, None], draw, hidden))
        for i, (hand, place) in enumerate(zip(self.hands, HIDDEN, strict=True)):
            live = sim.data.qpos[:, hand.qpos : hand.qpos + 2]
            arms.write(live, live.new_tensor(place).expand_as(live), mask & draw[:, i])

    def observe(self, sim: Sim) -> dict[str, Tensor]:
        """Return the teacher's terms and the student's numbers."""
        terms = super().observe(sim)
        for side, hand in zip(description.SIDES, self.hands, strict=True):
            command = sim.data.ctrl[:, hand.arm.ctrl].float()
            both = torch.cat((command, command[:, -1:]), dim=1)
            terms[f"{side}_tracking_error"] = terms[f"{side}_qpos"] - both
        terms["has_switched"] = self.is_up(sim).float()[:, None]
        return {name: value for name, value in terms.items() if name in self.listed}

    def label(self, sim: Sim) -> Tensor:
        """Return the pick's actions before the switch; nothing for an arm without its object.

        Elsewhere, and everywhere without `pick_policy`, the label is the teacher's.

        Raises:
            ValueError: the policy does not fit.
        """
        label = torch.full((sim.num_envs, len(self.actions)), torch.nan, device=sim.device)
        if self.cfg.pick_policy:
            self.labeller = self.labeller or self.open_picker(sim)
            pick = self.labeller.answer(self._arm_terms()) * self.pick_factor
            label = torch.where(self.is_up(sim)[:, None], label, pick.clamp(-1.0, 1.0))
        hidden = self.memory["hidden"].repeat_interleave(len(description.CHANNELS), dim=1)
        return label.masked_fill(hidden, 0.0)

    def terminated(self, sim: Sim) -> Tensor:
        """Return whether something is lost or tilted: a student may drop an object and retry."""
        return self.is_out_of_reach(sim)

    def success(self, sim: Sim) -> Tensor:
        """Return whether the peg is home; never where an object is hidden."""
        return super().success(sim) & ~self.memory["hidden"].any(dim=1)

    def step_metrics(self, sim: Sim) -> dict[str, Tensor]:
        """Return the teacher's, and whether a hand without its object closes."""
        closes = torch.stack(
            [sim.data.ctrl[:, hand.arm.ctrl.stop - 1] < CLOSING for hand in self.hands], dim=1
        )
        hidden = self.memory["hidden"]
        return {
            **super().step_metrics(sim),
            "hidden": hidden.any(dim=1).float(),
            "grasps_air": (closes & hidden).any(dim=1).float(),
        }

    def episode_metrics(
        self, sums: dict[str, Tensor], steps: Tensor, terminated: Tensor
    ) -> dict[str, Tensor]:
        """Return the teacher's, and shares of episodes: with a hidden object, and grasped at."""
        own = {name: sums[name] > 0 for name in ("hidden", "grasps_air")}
        return {**super().episode_metrics(sums, steps, terminated), **own}


NAME = "aloha_peg_insertion_student"
TASK = PegInsertionStudent
