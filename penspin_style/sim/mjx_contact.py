"""Contacts of boxes with planes as MuJoCo C finds them, in MJX's own collision table.

MJX drops corners that lie more than 1 mm above the deepest one: a tilted finger that presses on the
floor then stands on one corner instead of two, with forces that are 10 N off.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from penspin_style.bridge.start import import_extra, import_jax

_jax: Any = import_jax("engine=mjx")
_convex: Any = import_extra("mujoco.mjx._src.collision_convex", "engine=mjx")
_driver: Any = import_extra("mujoco.mjx._src.collision_driver", "engine=mjx")
_math: Any = import_extra("mujoco.mjx._src.math", "engine=mjx")
_KEY = (_driver.GeomType.PLANE, _driver.GeomType.BOX)
_CORNERS = 4  # that a box can have below its middle


@_convex.collider(ncon=_CORNERS)
def plane_box(plane: Any, box: Any) -> tuple[Any, Any, Any]:
    """Return distance (4,) m, position (4, 3) m and frame (4, 3, 3) of a box's lowest corners."""
    jnp, normal = _jax.numpy, plane.mat[:, 2]
    corners = box.pos + box.vert @ box.mat.T
    height, lowest = _jax.lax.top_k((plane.pos - corners) @ normal, _CORNERS)
    dist = -height
    pos = corners[lowest] - 0.5 * dist[:, None] * normal
    return dist, pos, jnp.stack([_math.make_frame(normal)] * _CORNERS)


@contextlib.contextmanager
def contacts_of_mujoco() -> Iterator[None]:
    """Let what is traced within find contacts so; nobody else's programs."""
    before = _driver._COLLISION_FUNC[_KEY]
    _driver._COLLISION_FUNC[_KEY] = plane_box
    try:
        yield
    finally:
        _driver._COLLISION_FUNC[_KEY] = before
