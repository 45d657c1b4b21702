"""What the tests of the pen tasks share: environments, poses, and rotations in plain numpy."""

import numpy as np
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task

QUIET = {"joint_noise": [0.0, 0.0], "action_noise": [0.0, 0.0], "push_probability": 0.0}
"""Nothing disturbs joints, targets or pen."""
ENDLESS = {"lowest": -9.0, "lowest_end": -9.0, "highest_end": 9.0}
"""No pen falls too low."""
EAST = np.array([0.5**0.5, 0.0, 0.5**0.5, 0.0])
"""Quaternion of a pen whose axis points along +x."""


def make(name="pen_spin", num_envs=4, *, seed=1, engine="auto", **config):
    kind = load_task(name)
    return Env(kind(kind.Config(**config)), num_envs, seed=seed, engine=engine)


def step(env, action=None):
    """One control step without restarts; what is under `next`."""
    if action is None:
        action = torch.zeros(env.action_spec.shape)
    return env.step(env.current().set("action", action))["next"]


def still(env):
    return torch.zeros(env.action_spec.shape)


def put_pens(env, pos=None, quat=None):
    """Put the pens there, at rest; what depends on it is current."""
    at, dof = env.task.at, env.task.dof
    if pos is not None:
        env.sim.data.qpos[:, at : at + 3] = torch.as_tensor(pos).to(env.sim.data.qpos)
    if quat is not None:
        env.sim.data.qpos[:, at + 3 : at + 7] = torch.as_tensor(quat).to(env.sim.data.qpos)
    env.sim.data.qvel[:, dof : dof + 6] = 0.0
    env.sim.forward()


def pen_pose(env):
    """Positions (n, 3) and matrices (n, 3, 3) of the pens, from the state."""
    at = env.task.at
    pose = env.sim.data.qpos[:, at : at + 7].double().numpy().copy()
    return pose[:, :3], matrix(pose[:, 3:])


def pen_sizes(env):
    """Radius and half length of every pen, (n,) m each."""
    size = env.sim.params.geom_size[:, env.model.geom("pen").id].double().numpy()
    return size[:, 0], size[:, 1]


def multiply(p, q):
    """Hamilton product of quaternions (..., 4), w first."""
    p, q = np.asarray(p, dtype=float), np.asarray(q, dtype=float)
    scalar = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdims=True)
    vector = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])
    return np.concatenate((scalar, vector), axis=-1)


def about(axis, angle):
    """Quaternions (..., 4) of turns by angle (...,) rad about an axis (3,) or (..., 3)."""
    axis = np.asarray(axis, dtype=float)
    axis = axis / np.linalg.norm(axis, axis=-1, keepdims=True)
    half = np.asarray(angle, dtype=float)[..., None] / 2
    return np.concatenate((np.cos(half), np.sin(half) * axis), axis=-1)


def matrix(quat):
    """Matrices (..., 3, 3) of unit quaternions (..., 4): the images of the three axes."""
    quat = np.asarray(quat, dtype=float)
    conjugate = quat * [1, -1, -1, -1]
    columns = [
        multiply(multiply(quat, np.broadcast_to([0.0, *axis], quat.shape)), conjugate)[..., 1:]
        for axis in np.eye(3)
    ]
    return np.stack(columns, axis=-1)


def rotation_vector(turn):
    """Angle times axis (..., 3) of matrices (..., 3, 3) that turn by less than half a turn."""
    sine = np.stack(
        (
            turn[..., 2, 1] - turn[..., 1, 2],
            turn[..., 0, 2] - turn[..., 2, 0],
            turn[..., 1, 0] - turn[..., 0, 1],
        ),
        axis=-1,
    )
    norm = np.linalg.norm(sine, axis=-1, keepdims=True)
    cosine = np.trace(turn, axis1=-2, axis2=-1)[..., None] - 1.0
    return np.arctan2(norm, cosine) * sine / np.maximum(norm, 1e-12)


def wilson(hits, count, z):
    """Wilson's interval of a share, z standard deviations wide to both sides."""
    share, extra = hits / count, z * z / count
    middle = (share + extra / 2) / (1 + extra)
    half = z / (1 + extra) * np.sqrt(share * (1 - share) / count + extra / (4 * count))
    return middle - half, middle + half
