"""What surrounds a robot in every scene: sky, a chequered floor, a light, and how cameras aim."""

import mujoco
import numpy as np

Triple = tuple[float, float, float]


def add_scenery(
    spec: mujoco.MjSpec,
    *,
    floor: tuple[Triple, Triple],
    half_size: float,
    is_solid: bool = True,
    light_pos: Triple,
    light_dir: Triple,
    light_specular: float,
    shadowsize: int,
) -> None:
    """Add the sky, the plane `floor` with its material, and the directional light `top`.

    floor: colours of its squares; half_size: m, of the plane that is drawn; is_solid: whether
    things touch it. light_pos: m; shadowsize: pixels of the shadow map.
    """
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=[0.86, 0.90, 0.94],
        rgb2=[0.60, 0.68, 0.76],
        width=64,
        height=64,
    )
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=floor[0],
        rgb2=floor[1],
        width=300,
        height=300,
    )
    material = spec.add_material(name="floor", texrepeat=[5, 5], texuniform=True, reflectance=0.0)
    material.textures[int(mujoco.mjtTextureRole.mjTEXROLE_RGB)] = "floor"
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        size=[half_size, half_size, 0.05],
        material="floor",
        contype=int(is_solid),
        conaffinity=int(is_solid),
    )
    spec.worldbody.add_light(
        name="top",
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=light_pos,
        dir=light_dir,
        diffuse=[0.6] * 3,
        specular=[light_specular] * 3,
    )
    spec.visual.quality.shadowsize = shadowsize
    spec.visual.rgba.haze = [0.80, 0.85, 0.90, 1.0]
    spec.visual.global_.offwidth, spec.visual.global_.offheight = 1280, 1280


def look_at(position: np.ndarray, focus: np.ndarray) -> np.ndarray:
    """Return the x and y axes (6,) of a camera that looks from position to focus, upright."""
    back = position - focus
    right = np.cross([0.0, 0.0, 1.0], back)
    up = np.cross(back, right)
    return np.concatenate((right / np.linalg.norm(right), up / np.linalg.norm(up)))
