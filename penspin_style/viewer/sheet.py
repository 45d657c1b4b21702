"""A contact sheet of an object: what is seen above, what is touched below, from three sides."""

import io

import mujoco
import numpy as np
from PIL import Image, ImageDraw

from penspin_style.meshes.folder import Object
from penspin_style.meshes.trial import object_spec
from penspin_style.render.gl_renderer import choose_platform

_SIDES = ((135.0, -25.0), (45.0, -25.0), (90.0, -89.0))  # azimuth, elevation in degrees
_SIZE = 240  # pixels
_SEEN = (0.75, 0.75, 0.78, 1.0)
_COLOURS = 10  # of hulls


def object_sheet(found: Object) -> bytes:
    """Return a PNG file, 3 x 2 views of 240 pixels.

    Raises:
        NoOpenGLError: this machine has no off-screen OpenGL.
    """
    choose_platform()
    spec = object_spec(found)
    spec.body("object").pos = [0.0, 0.0, 0.0]
    spec.delete(spec.geom("floor"))
    for i, geom in enumerate(spec.body("object").geoms):
        geom.rgba = _colour(i - 1) if i else _SEEN
    spec.visual.global_.offwidth = spec.visual.global_.offheight = _SIZE
    spec.visual.headlight.ambient = [0.45, 0.45, 0.45]
    model = spec.compile()
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    rows = []
    renderer = mujoco.Renderer(model, _SIZE, _SIZE)
    try:
        for group in (2, 3):
            option = mujoco.MjvOption()
            option.geomgroup[:] = 0
            option.geomgroup[group] = 1
            rows.append(np.hstack([_view(renderer, data, found, option, s) for s in _SIDES]))
    finally:
        renderer.close()
    return _labelled(np.vstack(rows), found)


def _colour(number: int) -> tuple[float, float, float, float]:
    """Return one of a few colours that differ: hues around the circle."""
    angle = 2.0 * np.pi * (number % _COLOURS) / _COLOURS
    red, green, blue = 0.55 + 0.4 * np.cos(angle + np.array([0.0, -2.1, 2.1]))
    return float(red), float(green), float(blue), 1.0


def _view(
    renderer: mujoco.Renderer,
    data: mujoco.MjData,
    found: Object,
    option: mujoco.MjvOption,
    side: tuple[float, float],
) -> np.ndarray:
    camera = mujoco.MjvCamera()
    vertices = found.visual_mesh.vertices
    camera.lookat[:] = (vertices.min(axis=0) + vertices.max(axis=0)) / 2.0
    camera.distance = 1.6 * float(np.linalg.norm(found.size))
    camera.azimuth, camera.elevation = side
    renderer.update_scene(data, camera, option)
    return renderer.render()


def _labelled(pixels: np.ndarray, found: Object) -> bytes:
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    size = " x ".join(f"{1000.0 * x:.0f}" for x in found.size)
    draw.text((6, 4), f"{found.name}: {size} mm, {found.mass:.3g} kg", fill=(255, 255, 255))
    hulls = len(found.collision)
    draw.text((6, _SIZE + 4), f"{hulls} convex part{'s' * (hulls > 1)}", fill=(255, 255, 255))
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
