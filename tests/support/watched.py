"""The cart of `toy` under a camera: where it is can be read off the image.

The camera looks straight down from 2.1 m with 90 degrees to a side. The cart carries a red sign, 50
cm wide and 0.1 m high, so that its depth is 2 m, and an image is 4 m wide there. Nothing else is
in sight but the cart under its sign.
"""

from dataclasses import dataclass, field

import mujoco
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import Camera, ObsTerm
from penspin_style.sim.randomize import Randomize
from tests.support import toy

DEPTH, WIDTH, SIGN = 2.0, 4.0, 0.25  # m; the last is half a side
AWAY = 3.0  # m, where no camera sees an absent cart
NUMBERS = ("position", "velocity", "last_action")


def layout(*student, **terms):
    """Groups in which the student has these terms, and those of `terms` as they are given."""
    return {
        "teacher": {name: ObsTerm() for name in NUMBERS},
        "student": {**{name: ObsTerm() for name in student}, **terms},
    }


@dataclass
class Config(toy.Config):
    """Numbers of the task."""

    observation: dict[str, dict[str, ObsTerm]] = field(
        default_factory=lambda: layout("velocity", "above_rgb", "above_depth")
    )
    cameras: dict[str, Camera] = field(
        default_factory=lambda: {"above": Camera(16, 16), "view": Camera(8, 12)}
    )


class WatchedCart(toy.Cart):
    """See the module's docstring. **Success**: the cart is within `close` of the middle."""

    Config = Config

    def spec(self):
        spec = super().spec()
        box = mujoco.mjtGeom.mjGEOM_BOX
        look = {"contype": 0, "conaffinity": 0, "mass": 0.0, "rgba": [1, 0, 0, 1]}
        at, size = [0, 0, 0.09], [SIGN, SIGN, 0.01]
        spec.body("cart").add_geom(name="sign", type=box, pos=at, size=size, **look)
        spec.worldbody.add_camera(name="above", pos=[0, 0, 2.1], fovy=90)
        lamp = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
        spec.worldbody.add_light(name="sun", type=lamp, dir=[0, 0, -1], diffuse=[0.5] * 3)
        return spec

    def randomize(self):
        return [*super().randomize(), Randomize("geom_rgba", "sign", 0.3, 1.0, column=0)]

    def start(self, sim):
        super().start(sim)
        self.memory["is_absent"] = torch.zeros(sim.num_envs, dtype=torch.bool, device=sim.device)

    def reset(self, sim, mask, rng):
        super().reset(sim, mask, rng)
        self.memory["is_absent"].masked_fill_(mask, False)

    def remove_object(self, sim, mask):
        sim.data.qpos.copy_(torch.where(mask[:, None], AWAY, sim.data.qpos))
        self.memory["is_absent"].logical_or_(mask)

    def terminated(self, sim):
        return super().terminated(sim) & ~self.memory["is_absent"]


TASK = WatchedCart


def make(num_envs=4, *, seed=1, final_images=True, absent_object=0.0, stagger=False, **config):
    """An environment of it, without randomisation unless asked for."""
    cfg = Config(**{"randomize": False, **config})
    settings = {"final_images": final_images, "absent_object": absent_object, "stagger": stagger}
    return Env(WatchedCart(cfg), num_envs, seed=seed, **settings)


def place(env, *positions):
    """Put the carts there, at rest, as the simulation has it; the last observation stays."""
    env.sim.data.qpos[:, 0] = torch.tensor(positions, dtype=torch.float64)
    env.sim.data.qvel.zero_()
    env.sim.forward()


def go(env, *positions):
    """Put the carts there and take a step in which they rest; what `step_and_maybe_reset` says."""
    place(env, *positions)
    td = env.current().set("action", torch.zeros(env.num_envs, 1))
    return env.step_and_maybe_reset(td)


def expected(x, size=16):
    """Depth image (size, size) of a cart at x, by the pinhole: a pixel is a ray's footprint."""
    metres = WIDTH * ((torch.arange(size) + 0.5) / size - 0.5)  # of the pixels' centres
    across, along = (metres - x).abs() < SIGN, metres.abs() < SIGN
    return DEPTH * (along[:, None] & across[None, :])


def seen_at(depth):
    """Where the sign is in depth images (n, size, size), m; NaN if it is not there."""
    size = depth.shape[-1]
    metres = WIDTH * ((torch.arange(size) + 0.5) / size - 0.5)
    hit = (depth > 0).any(dim=-2).float()
    return (hit * metres).sum(dim=-1) / hit.sum(dim=-1)
