"""The Franka Panda as the tasks use it: its world, its joints, and a Cartesian controller."""

import pathlib

import mujoco
import numpy as np
import torch
from torch import Tensor

from penspin_style.features import Joint
from penspin_style.rotation import rotation_vector, to_matrix
from penspin_style.sim.sim import Sim
from tasks.robots.panda.description import ARM, DOWN, FINGER, JOINTS, LOWER, TCP, UPPER
from tasks.robots.panda.skin import attach_skin
from tasks.robots.scenery import add_scenery, look_at

_MODEL = pathlib.Path(__file__).with_name("panda.xml")


def scene(*, gravcomp: bool, skin: bool = False) -> mujoco.MjSpec:
    """Return a world with the robot, a floor, light and a camera named `view`.

    gravcomp: cancel the robot's weight, as the real arm's controller does.
    skin: draw the Menagerie's meshes instead of our primitives; physics stays the same.

    Raises:
        SkinNotFoundError: `skin` is asked for and the meshes are not on this machine.
    """
    spec = mujoco.MjSpec.from_file(str(_MODEL))
    if skin:
        attach_skin(spec)
    add_scenery(
        spec,
        floor=((0.80, 0.82, 0.84), (0.74, 0.76, 0.79)),
        half_size=2.5,
        light_pos=(0.3, 0.6, 2.0),
        light_dir=(0.1, -0.3, -1.0),
        light_specular=0.2,
        shadowsize=8192,
    )
    view, focus = np.array([1.45, -0.95, 0.85]), np.array([0.27, 0.0, 0.32])
    axes = look_at(view, focus)
    spec.worldbody.add_camera(name="view", pos=view, xyaxes=axes, fovy=42)
    if gravcomp:
        for body in spec.bodies:
            if body.name != "world":
                body.gravcomp = 1.0
    spec.visual.headlight.ambient = [0.35] * 3
    spec.visual.map.shadowclip = 3.0  # the light's shadows end far outside the image
    return spec


def add_box(
    spec: mujoco.MjSpec, half: tuple[float, float, float], mass: float, rgba: tuple[float, ...]
) -> None:
    """Add a free box named `box` that rests on the floor at the origin of the workspace."""
    body = spec.worldbody.add_body(name="box", pos=[0.5, 0.0, half[2]])
    body.add_freejoint(name="box")
    body.add_geom(
        name="box",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=half,
        mass=mass,
        rgba=rgba,
        contype=2,
        conaffinity=1,
        friction=[1, 0.03, 0.003],
        solref=[0.01, 1],
    )


def joints(model: mujoco.MjModel, home: Tensor) -> tuple[Joint, ...]:
    """Return the eight actuated joints: seven of the arm, then one finger (the other follows)."""
    gain, bias = model.actuator_gainprm[:, 0], model.actuator_biasprm[:, 2]
    rows = zip(JOINTS, LOWER, UPPER, gain.tolist(), (-bias).tolist(), home.tolist(), strict=True)
    return tuple(Joint(name, "m" if name == FINGER else "rad", *numbers) for name, *numbers in rows)


class CartesianArm:
    """Drive the tool centre point to a target, gripper pointing down, through the joint servos.

    Damped least squares on the measured joints, once per control step:
    dq = z + J' (J J' + d^2 I)^-1 (e - J z), with e the pose error and z a pull towards the home
    posture that acts where the task leaves freedom (Nakamura, Hanafusa 1986).
    """

    damping = 0.05
    posture_gain = 0.2

    def __init__(self, sim: Sim, home: Tensor) -> None:
        model, n = sim.model, len(ARM)
        site, first = model.site(TCP).id, model.joint(ARM[0]).id
        # views of the live fields, taken once: slicing them again would cost more than the algebra
        self.position = sim.data.site_xpos[:, site]
        """The tool centre point in the world, (num_envs, 3) m."""
        self._matrix = sim.data.site_xmat[:, site]
        self._anchor = sim.data.xanchor[:, first : first + n]  # (num_envs, 7, 3)
        self._axis = sim.data.xaxis[:, first : first + n]
        self._qpos, self._ctrl = sim.data.qpos[:, :n], sim.data.ctrl[:, :n]
        self._home = home[:n].to(sim.device, torch.float32)
        limits = torch.as_tensor(model.actuator_ctrlrange[:n], dtype=torch.float32)
        self._low, self._high = limits.to(sim.device).unbind(1)
        self._ridge = self.damping**2 * torch.eye(6, device=sim.device)
        self._turn = _turn_to(to_matrix(torch.tensor(DOWN))).to(sim.device)

    def command(self, target: Tensor) -> None:
        """Write the seven position targets for a target of the tool, (num_envs, 3) m."""
        self._ctrl.copy_(self.goal(target, self._matrix.flatten(1) @ self._turn))

    def goal(self, target: Tensor, turn: Tensor) -> Tensor:
        """Return the seven position targets that bring the tool nearer to a pose, (num_envs, 7).

        target: (num_envs, 3) m; turn: (num_envs, 3), the rotation vector that leads there.
        """
        arm = self.position[:, None] - self._anchor
        jac_t = torch.cat((torch.linalg.cross(self._axis, arm), self._axis), dim=2)
        jac = jac_t.transpose(1, 2)  # (num_envs, 6, 7)
        error = torch.cat((target - self.position, turn), dim=1)
        q = self._qpos.float()
        posture = self.posture_gain * (self._home - q)
        gram = torch.baddbmm(self._ridge, jac, jac_t)
        rest = torch.baddbmm(error[:, :, None], jac, posture[:, :, None], alpha=-1)
        wrench = torch.linalg.solve_ex(gram, rest)[0]
        goal = torch.baddbmm((q + posture)[:, :, None], jac_t, wrench).squeeze(2)
        return goal.clamp(self._low, self._high)


def _turn_to(goal: Tensor) -> Tensor:
    """Return the linear map (9, 3) from a rotation matrix, raveled, to the turn that leads to goal.

    The turn is `rotation_vector(goal R')`, which is linear in R: one product a step instead of ten
    operations. goal: (3, 3).
    """
    basis = torch.eye(9).unflatten(1, (3, 3))
    return rotation_vector(goal @ basis.transpose(1, 2))
