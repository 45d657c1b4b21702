"""What is touched on a page: contacts with their forces, and commands that disturb a world."""

import threading
from typing import Any, NamedTuple

import mujoco
import numpy as np
import torch

from penspin_style.render.one_world import OneWorld
from penspin_style.sim.sim import Sim

_ORANGE = (255, 120, 0)


class Contacts:
    """Lines from where bodies touch, as long as the force between them, `vis.map.force` m/N."""

    def __init__(self, server: Any, sim: Sim) -> None:
        self._sim, self._scene = sim, server.scene
        self._shown = server.gui.add_checkbox("contacts", initial_value=False)
        self._world: OneWorld | None = None
        self._lines: Any = None

    def draw(self, env_id: int, offset: np.ndarray) -> None:
        """Show those of an environment that is drawn at an offset, (3,) m; nothing if unwanted."""
        lines = np.zeros((0, 2, 3))
        if self._shown.value:
            if self._world is None:
                self._world = OneWorld(self._sim)
            self._world.update(env_id)
            lines = forces(self._world.model, self._world.data) + offset
        if self._lines is not None:
            self._lines.visible = len(lines) > 0
        if len(lines):
            self._lines = self._scene.add_line_segments(
                "/contacts", points=lines.astype(np.float32), colors=_ORANGE, thickness=0.004
            )


def forces(model: mujoco.MjModel, data: mujoco.MjData) -> np.ndarray:
    """Return a line (2, 3) m for each contact that bears a force, in the world's frame."""
    lines, force = [], np.zeros(6)
    for i in range(data.ncon):
        mujoco.mj_contactForce(model, data, i, force)
        if force[0] > 0:
            along = data.contact.frame[i].reshape(3, 3).T @ force[:3]
            start = data.contact.pos[i]
            lines.append((start, start + model.vis.map.force * along))
    return np.array(lines).reshape(-1, 2, 3)


class _Thing(NamedTuple):
    """A body that can be moved: where its numbers are, of a free joint or of a mocap body."""

    body: int
    qpos: int = -1
    dof: int = -1
    mocap: int = -1


class Commands:
    """A panel: push an object, or drag it, or a target, to another place.

    What is asked for is noted by the server's threads; `apply` does it between two control steps.
    """

    def __init__(self, server: Any, sim: Sim, extent: float) -> None:
        """Add the panel, if the model has anything that can be moved."""
        self.sim, self.things = sim, _things(sim.model)
        self._lock, self._pushes, self._place = threading.Lock(), 0, False
        self._rng = np.random.default_rng(0)
        if not self.things:
            return
        gui, names = server.gui, [*self.things]
        with gui.add_folder("commands"):
            self._which = gui.add_dropdown("object", names, initial_value=names[0])
            self._speed = gui.add_slider("push, m/s", min=0.0, max=3.0, step=0.1, initial_value=0.5)
            gui.add_button("push").on_click(self._push)
            self._dragged = gui.add_checkbox("drag", initial_value=False)
        self._handle = server.scene.add_transform_controls(
            "/drag", scale=0.15 * extent, visible=False
        )
        self._handle.on_update(self._drag)

    def apply(self, env_id: int, offset: np.ndarray) -> None:
        """Do to an environment, drawn at an offset (3,) m, what was asked for since the last."""
        if not self.things:
            return
        with self._lock:
            pushes, place = self._pushes, self._place
            self._pushes, self._place = 0, False
        thing, data = self.things[self._which.value], self.sim.data
        drags = bool(self._dragged.value)
        if drags and not self._handle.visible:
            self._handle.position = data.xpos[env_id, thing.body].cpu().numpy() + offset
            self._handle.wxyz = data.xquat[env_id, thing.body].cpu().numpy()
        self._handle.visible = drags
        if place and drags:
            self._set(thing, env_id, np.asarray(self._handle.position) - offset)
        if pushes and thing.dof >= 0:
            angle = self._rng.uniform(0.0, 2.0 * np.pi)
            change = self._speed.value * np.array([np.cos(angle), np.sin(angle), 0.0])
            data.qvel[env_id, thing.dof : thing.dof + 3] += torch.as_tensor(
                change, dtype=data.qvel.dtype, device=data.qvel.device
            )
        if pushes or (place and drags):
            self.sim.forward()

    def _set(self, thing: _Thing, env_id: int, position: np.ndarray) -> None:
        pose = torch.as_tensor(np.concatenate((position, np.asarray(self._handle.wxyz))))
        data = self.sim.data
        if thing.mocap >= 0:
            data.mocap_pos[env_id, thing.mocap] = pose[:3].to(data.mocap_pos)
            data.mocap_quat[env_id, thing.mocap] = pose[3:].to(data.mocap_quat)
            return
        data.qpos[env_id, thing.qpos : thing.qpos + 7] = pose.to(data.qpos)
        data.qvel[env_id, thing.dof : thing.dof + 6] = 0.0

    def _push(self, _: Any) -> None:
        with self._lock:
            self._pushes += 1

    def _drag(self, _: Any) -> None:
        with self._lock:
            self._place = True


def _things(model: mujoco.MjModel) -> dict[str, _Thing]:
    """Return what can be moved, by the name of its body: what floats, and mocap bodies."""
    found = {}
    for joint in range(model.njnt):
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_FREE:
            body = int(model.jnt_bodyid[joint])
            place = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
            found[model.body(body).name] = _Thing(body, *place)
    for body in range(model.nbody):
        if model.body_mocapid[body] >= 0:
            found[model.body(body).name] = _Thing(body, mocap=int(model.body_mocapid[body]))
    return found
