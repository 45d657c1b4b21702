"""A scene of three shapes, and its images by a ray tracer of a page: nothing of it is Warp's."""

import mujoco
import numpy as np

from penspin_style.sim.randomize import Randomize

FLOOR, GHOST, BOX, BALL = range(4)  # geom ids: those of the world come first

TABLE = """
<mujoco model="table">
  <visual><headlight ambient=".25 .25 .25" diffuse="0 0 0" specular="0 0 0"/></visual>
  <statistic extent="1" center="0 0 0"/>
  <asset>
    <material name="cloth" rgba=".8 .6 .4 1"/>
    <material name="paint" rgba=".2 .4 .9 1"/>
  </asset>
  <worldbody>
    <light name="sun" type="directional" pos="0 0 3" dir="0 0 -1" diffuse=".4 .4 .4"
           specular="0 0 0"/>
    <light name="lamp" type="point" pos=".5 -.4 1.5" diffuse=".3 .3 .3" specular="0 0 0"/>
    <camera name="top" pos="0 0 2" fovy="50"/>
    <camera name="side" pos="0 -1.5 .8" xyaxes="1 0 0 0 .5 1" fovy="40"/>
    <camera name="up" pos="0 0 1" xyaxes="1 0 0 0 -1 0"/>
    <geom name="floor" type="plane" size="2 2 .1" material="cloth"/>
    <body name="box" pos=".3 .1 .2"><freejoint/>
      <geom name="box" type="box" size=".1 .12 .1" material="paint"/></body>
    <body name="ball" pos="-.3 0 .3"><freejoint/>
      <geom name="ball" type="sphere" size=".15" rgba=".9 .3 .1 1" material="paint"/></body>
    <geom name="ghost" type="box" size=".05 .05 .05" pos="0 0 1.5" group="3"/>
  </worldbody>
</mujoco>
"""


RGB = slice(0, 3)
# what may differ between the tables of one simulation
LOOKS = {
    row.field: row
    for row in (
        Randomize("geom_rgba", names="ball", column=RGB, low=0.1, high=0.9, when="startup"),
        Randomize("mat_rgba", column=RGB, low=0.1, high=0.9, when="startup"),
        Randomize(*("geom_size", "box|ball"), operation="scale", low=0.7, high=1.4, when="startup"),
        Randomize("light_diffuse", low=0.1, high=0.4, when="startup"),
        Randomize("cam_pos", operation="add", low=-0.2, high=0.2, when="startup"),
        Randomize("cam_quat", operation="turn", low=0.05, high=0.3, when="startup"),
        Randomize("cam_fovy", operation="scale", low=0.6, high=1.4, when="startup"),
    )
}


def table() -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(TABLE)


def matrix(quat):
    w, x, y, z = quat / np.linalg.norm(quat)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


class Image:
    """One environment of the table through one camera: `rgb`, `depth`, `segmentation`."""

    def __init__(self, sim, env, camera, height, width, *, shadows=False):
        self.sim, self.env, self.model = sim, env, sim.model
        cam = self.model.camera(camera).id
        qpos = sim.data.qpos[env].double().cpu().numpy()
        self.pose = {
            FLOOR: (np.zeros(3), np.eye(3)),
            BOX: (qpos[:3], matrix(qpos[3:7])),
            BALL: (qpos[7:10], np.eye(3)),
        }
        half = np.tan(0.5 * np.radians(self.value("cam_fovy")[cam]))
        y, x = np.meshgrid(
            half * (1 - 2 * (np.arange(height) + 0.5) / height),
            half * (2 * (np.arange(width) + 0.5) / width - 1) * width / height,
            indexing="ij",
        )
        rays = np.stack((x, y, -np.ones_like(x)), -1) @ matrix(self.value("cam_quat")[cam]).T
        eye = np.broadcast_to(self.value("cam_pos")[cam], rays.shape)
        self.depth, self.segmentation, normal = self.nearest(eye, rays)  # rays end at depth 1
        self.depth = np.where(self.segmentation < 0, 0.0, self.depth)
        point = eye + self.depth[..., None] * rays
        light = np.full(rays.shape, 0.25)  # the headlight's ambient
        for i in range(self.model.nlight):
            diffuse = self.value("light_diffuse")[i] * self.value("light_active")[i]
            towards = -np.broadcast_to(self.value("light_dir")[i], rays.shape)
            if self.model.light_type[i] != int(mujoco.mjtLightType.mjLIGHT_DIRECTIONAL):
                towards = self.value("light_pos")[i] - point
            share = (normal * towards).sum(-1) / np.linalg.norm(towards, axis=-1)
            if shadows:
                blocked = self.nearest(point + 1e-4 * normal, towards)
                share = np.where((blocked[1] >= 0) & (blocked[0] < 1e8), 0.0, share)
            light += np.maximum(share, 0.0)[..., None] * diffuse
        colour = np.stack([*(self.colour(i) for i in range(4)), np.zeros(3)])
        self.rgb = (255 * np.clip(light * colour[self.segmentation], 0, 1)).astype(np.uint8)

    def value(self, name):
        params = self.sim.params
        if name in params:
            return params[name][self.env].double().cpu().numpy()
        return getattr(self.model, name)

    def colour(self, geom):
        """A geom's own colour if it has one, else that of its material."""
        own = self.value("geom_rgba")[geom]
        if np.array_equal(own, [0.5, 0.5, 0.5, 1.0]):
            own = self.value("mat_rgba")[self.value("geom_matid")[geom].astype(int)]
        return own[:3]

    def nearest(self, start, ray):
        """Nearest hit of each ray: how many ray lengths away, geom or -1, normal."""
        best = np.full(ray.shape[:-1], np.inf)
        geom, normal = np.full(best.shape, -1), np.zeros(ray.shape)
        for i, hit in ((FLOOR, self.floor), (BOX, self.box), (BALL, self.ball)):
            pos, mat = self.pose[i]
            t, n = hit((start - pos) @ mat, ray @ mat, self.value("geom_size")[i])
            closer = (t > 0) & (t < best)
            best, geom = np.where(closer, t, best), np.where(closer, i, geom)
            normal = np.where(closer[..., None], n @ mat.T, normal)
        return best, geom, normal

    @staticmethod
    def floor(p, v, size):
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(v[..., 2] < 0, -p[..., 2] / v[..., 2], -1.0)
            inside = (abs(p + t[..., None] * v)[..., :2] <= size[:2]).all(-1)
        return np.where(inside, t, -1.0), np.broadcast_to([0.0, 0.0, 1.0], v.shape)

    @staticmethod
    def box(p, v, size):
        with np.errstate(divide="ignore", invalid="ignore"):
            enter, leave = (-np.sign(v) * size - p) / v, (np.sign(v) * size - p) / v
        t, face = enter.max(-1), enter.argmax(-1)
        normal = -np.sign(v) * (np.arange(3) == face[..., None])
        return np.where(t < leave.min(-1), t, -1.0), normal

    @staticmethod
    def ball(p, v, size):
        a, b, c = (v * v).sum(-1), (p * v).sum(-1), (p * p).sum(-1) - size[0] ** 2
        root = b * b - a * c
        t = np.where(root > 0, (-b - np.sqrt(np.maximum(root, 0))) / a, -1.0)
        return t, (p + t[..., None] * v) / size[0]
