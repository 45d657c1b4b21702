"""Write small objects that a Panda can pick, a folder of meshes each: make_objects.py FOLDER.

Every object is an exact union of convex parts: what collides is what is seen. Origin and axes of
its meshes are the centre of mass and the principal axes of inertia. The same call writes the same
bytes. The names of the objects are arguments, too; without any, all are written.
"""

import argparse
import itertools
import pathlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from penspin_style.meshes.folder import write_object
from penspin_style.meshes.mesh import Frame, Mesh, principal_frame, solid
from penspin_style.system.terminal import one_line

MM = 1e-3
SOURCE = "scripts/make_objects.py"
LICENCE = "Apache-2.0"

Outline = np.ndarray  # (n, 2): a closed polygon around the origin, counter-clockwise


@dataclass(frozen=True, eq=False)
class Shape:
    """What is seen, its convex parts, and the density in kg/m^3."""

    visual: Mesh
    parts: list[Mesh]
    density: float


# Meshes.


def stack(rings: Sequence[np.ndarray], poles: tuple[float, float] | None = None) -> Mesh:
    """Return the closed surface through rings (k, 3) of equal length, capped at both ends.

    The rings go up outside and, of a vessel, down again inside. poles: m, the height of the two
    caps' centres; None: the caps are flat.
    """
    k, n = len(rings[0]), len(rings)
    ends = np.array([rings[0].mean(axis=0), rings[-1].mean(axis=0)])
    if poles is not None:
        ends[:, 2] = poles
    this = np.arange(k)
    after = np.roll(this, -1)
    faces = [np.column_stack((np.full(k, n * k), after, this))]
    for low in range(0, (n - 1) * k, k):
        faces.append(np.column_stack((low + this, low + after, low + k + after)))
        faces.append(np.column_stack((low + this, low + k + after, low + k + this)))
    top = (n - 1) * k
    faces.append(np.column_stack((np.full(k, n * k + 1), top + this, top + after)))
    return Mesh(np.concatenate((*rings, ends)), np.concatenate(faces))


def ring(outline: Outline, height: float, scale: float = 1.0) -> np.ndarray:
    """Return an outline at a height, (n, 3)."""
    return np.column_stack((scale * outline, np.full(len(outline), height)))


def circle(count: int) -> Outline:
    """Return a polygon in the unit circle."""
    angle = 2 * np.pi * np.arange(count) / count
    return np.column_stack((np.cos(angle), np.sin(angle)))


def polygon(sides: int, count: int) -> Outline:
    """Return `count` points, at the angles of a circle's, on a polygon in the unit circle."""
    angle = 2 * np.pi * np.arange(count) / count
    half = np.pi / sides
    radius = np.cos(half) / np.cos(np.mod(angle, 2 * half) - half)
    return np.column_stack((radius * np.cos(angle), radius * np.sin(angle)))


def boxes(lines: tuple[Sequence[float], ...], cells: set[tuple[int, int, int]]) -> Mesh:
    """Return the surface of cells of a grid whose lines along x, y, z are given, m.

    Cells must touch by faces, not by edges or corners alone.
    """
    corners: dict[tuple[int, ...], int] = {}
    faces = []
    for cell, axis, side in itertools.product(sorted(cells), range(3), (0, 1)):
        beside = list(cell)
        beside[axis] += 2 * side - 1
        if tuple(beside) in cells:
            continue
        turn = ((0, 0), (1, 0), (1, 1), (0, 1))
        quad = []
        for u, v in turn if side else turn[::-1]:
            corner = list(cell)
            corner[axis] += side
            corner[(axis + 1) % 3] += u
            corner[(axis + 2) % 3] += v
            quad.append(corners.setdefault(tuple(corner), len(corners)))
        faces += [quad[:3], [quad[0], quad[2], quad[3]]]
    points = [[lines[axis][i] for axis, i in enumerate(corner)] for corner in corners]
    return Mesh(np.array(points), np.array(faces))


# Shapes.


def convex(mesh: Mesh, density: float) -> Shape:
    """Return a shape that is one convex part."""
    return Shape(mesh, [mesh], density)


def superquadric(
    half: tuple[float, float, float], exponents: tuple[float, float], *, taper: float = 0.0
) -> Mesh:
    """Return a convex superquadric (Barr 1981).

    half: m; exponents: of its sides and of its outline, 1 is an ellipsoid and 0 a box; taper: how
    much wider than its middle the lower end is, as a share.
    """

    def power(value: np.ndarray, exponent: float) -> np.ndarray:
        return np.sign(value) * np.abs(value) ** exponent

    outline = power(circle(32), exponents[1]) * half[:2]
    height = np.linspace(-np.pi / 2, np.pi / 2, 17)[1:-1]
    z, width = power(np.sin(height), exponents[0]), power(np.cos(height), exponents[0])
    rings = [ring(outline, half[2] * h, w * (1 - taper * h)) for h, w in zip(z, width, strict=True)]
    return stack(rings, poles=(-half[2], half[2]))


def lathe(profile: Sequence[tuple[float, float]], cuts: Sequence[int], density: float) -> Shape:
    """Return a solid of revolution; its profile is convex between two cuts.

    profile: radius and height, m, upwards; cuts: indices into it.
    """
    rings = [ring(circle(32), height, radius) for radius, height in profile]
    ends = (0, *cuts, len(rings) - 1)
    parts = [stack(rings[a : b + 1]) for a, b in itertools.pairwise(ends)]
    return Shape(stack(rings), parts, density)


def vessel(
    profile: Sequence[tuple[float, float]],
    inner: tuple[float, float],
    floor: int,
    *,
    sides: int,
    count: int,
    density: float,
) -> Shape:
    """Return a hollow solid, round outside, with flat sides inside: one convex part for each.

    profile: outer radius and height, m, upwards, convex; inner: radius of the cavity at its floor
    and at the rim, m; floor: index into `profile` of the height of the cavity's floor.
    """
    outline, hollow = circle(count), polygon(sides, count)
    rings = [ring(outline, height, radius) for radius, height in profile]
    low, high = profile[floor][1], profile[-1][1]
    mesh = stack([*rings, ring(hollow, high, inner[1]), ring(hollow, low, inner[0])])
    parts = [stack(rings[: floor + 1])]
    step = count // sides
    for side in range(sides):
        arc = np.arange(side * step, (side + 1) * step + 1) % count
        sections = []
        for r, (_, height) in zip(rings[floor:], profile[floor:], strict=True):
            share = (height - low) / (high - low)
            edge = ring(hollow, height, inner[0] + share * (inner[1] - inner[0]))
            sections.append(np.concatenate((r[arc], edge[arc[[-1, 0]]])))
        parts.append(stack(sections))
    return Shape(mesh, parts, density)


def with_handle(cup: Shape, count: int, levels: tuple[int, int], reach: float) -> Shape:
    """Return a vessel with a handle of two bars between two facets of its outside.

    levels: indices of the rings below the lower and the upper facet; reach: m from the wall.
    """
    vertices, column = cup.visual.vertices, count // 2
    quads = []
    for level in levels:
        low, high = level * count + column, (level + 1) * count + column
        quads.append([low, low + 1, high + 1, high])
    lower, upper = vertices[quads[0]], vertices[quads[1]]
    normal = lower.mean(axis=0) * (1, 1, 0)
    normal /= np.linalg.norm(normal)
    inner = 0.5 * (lower + upper)[:2] + (reach - np.ptp(lower[:, 2])) * normal
    outer = 0.5 * (lower + upper)[:2] + reach * normal
    inner[:, 2] = outer[:, 2] = 0.5 * (lower[:, 2].mean() + upper[:, 2].mean())
    mitre = np.concatenate((inner, outer[::-1]))
    bars = [(quads[0], [3, 2, 1, 0]), (quads[1], [0, 1, 2, 3])]
    gone = {frozenset(q[:3]) for q in quads} | {frozenset((q[0], q[2], q[3])) for q in quads}
    faces = [face for face in cup.visual.faces.tolist() if frozenset(face) not in gone]
    for quad, order in bars:
        far = [len(vertices) + i for i in order]
        for a, b, c, d in zip(quad, np.roll(quad, -1), np.roll(far, -1), far, strict=True):
            faces += [[a, b, c], [a, c, d]]
    parts = [stack([vertices[quad], mitre[order]]) for quad, order in bars]
    return Shape(
        Mesh(np.concatenate((vertices, mitre)), np.array(faces)), [*cup.parts, *parts], cup.density
    )


def letter(rows: Sequence[str], lines: tuple[Sequence[float], ...], density: float) -> Shape:
    """Return a flat letter; a part for each capital.

    rows: from the top, one character a cell, blank where nothing is; lines: of x, y, z, m.
    """
    cells = {
        (x, len(rows) - 1 - y, 0): name
        for y, row in enumerate(rows)
        for x, name in enumerate(row)
        if name != " "
    }
    parts = []
    for part in sorted(set(cells.values())):
        of_part = np.array([cell for cell, name in cells.items() if name == part])
        ends = np.column_stack((of_part.min(axis=0), of_part.max(axis=0) + 1))
        sides = [[line[i] for i in end] for line, end in zip(lines, ends, strict=True)]
        parts.append(boxes((sides[0], sides[1], sides[2]), {(0, 0, 0)}))
    return Shape(boxes(lines, set(cells)), parts, density)


# The objects. Lengths in mm here.


def box() -> Shape:
    """Return a block of 50 x 40 x 30 mm."""
    lines = tuple((-0.5 * side * MM, 0.5 * side * MM) for side in (50, 40, 30))
    return convex(boxes((lines[0], lines[1], lines[2]), {(0, 0, 0)}), 600)


def cylinder() -> Shape:
    """Return a cylinder, 44 mm wide and 60 mm high."""
    return lathe(_mm((22, 0), (22, 60)), (), 700)


def bottle() -> Shape:
    """Return a bottle with a neck and a cap, 70 mm high."""
    body = ((14, 0), (17, 3), (17, 36), (14, 44), (8, 50))
    return lathe(_mm(*body, (8, 58), (10, 59), (10, 68), (8.5, 70)), (4, 5), 900)


def pillow() -> Shape:
    """Return a rounded block, 60 x 44 x 32 mm."""
    return convex(superquadric((30 * MM, 22 * MM, 16 * MM), (0.5, 0.6)), 400)


def egg() -> Shape:
    """Return an egg, 42 mm wide and 56 mm high."""
    return convex(superquadric((20.5 * MM, 20.5 * MM, 28 * MM), (1, 1), taper=0.2), 800)


def bowl() -> Shape:
    """Return a bowl, 58 mm wide and 30 mm high."""
    profile = _mm((13, 0), (16, 1), (20, 5), (24.5, 13), (27.5, 22), (29, 30))
    inner = (16 * MM, 26.5 * MM)
    return vessel(profile, inner, 2, sides=7, count=42, density=1100)


def cup() -> Shape:
    """Return a cup without a handle, 50 mm wide and 56 mm high."""
    profile = _mm((17, 0), (18, 1), (18.5, 5), (25, 56))
    return vessel(profile, (16.5 * MM, 23 * MM), 2, sides=7, count=42, density=1100)


def mug() -> Shape:
    """Return a mug with a handle, 46 mm wide and 50 mm high."""
    profile = _mm((22, 0), (23, 1), (23, 5), (23, 10), (23, 16), (23, 36), (23, 42), (23, 50))
    plain = vessel(profile, (21 * MM, 21 * MM), 2, sides=5, count=25, density=1100)
    return with_handle(plain, 25, (3, 5), 16 * MM)


def t_block() -> Shape:
    """Return a T of 60 x 50 x 25 mm."""
    lines = (_lines(0, 20, 40, 60), _lines(0, 30, 50), _lines(0, 25))
    return letter(("AAA", " B "), lines, 650)


def letter_l() -> Shape:
    """Return an L of 44 x 60 x 25 mm."""
    return letter(("A ", "AB"), (_lines(0, 20, 44), _lines(0, 20, 60), _lines(0, 25)), 650)


OBJECTS: dict[str, Callable[[], Shape]] = {
    shape.__name__: shape
    for shape in (
        *(box, cylinder, bottle, pillow, bowl, mug, t_block),
        *(egg, cup, letter_l),
    )
}


def _mm(*profile: tuple[float, float]) -> list[tuple[float, float]]:
    return [(radius * MM, height * MM) for radius, height in profile]


def _lines(*places: float) -> list[float]:
    return [place * MM for place in places]


def build(name: str, folder: pathlib.Path) -> None:
    """Write the object `name` into a folder of that name in `folder`, in place of one there."""
    shape = OBJECTS[name]()
    body = solid(shape.visual)
    frame = principal_frame(body)
    mass = round(shape.density * body.volume, 4)
    moments = mass / body.volume * frame.moments
    write_object(
        folder / name,
        name=name,
        licence=LICENCE,
        source=SOURCE,
        mass=mass,
        inertia=[float(f"{moment:.6g}") for moment in moments],
        volume=float(f"{body.volume:.6g}"),
        visual=_placed(shape.visual, frame),
        collision=[_placed(part, frame) for part in shape.parts],
        replace=True,
    )


def _placed(mesh: Mesh, frame: Frame) -> Mesh:
    """Return a mesh in the principal frame, to a tenth of a micrometre."""
    moved = mesh.moved(frame.rotation, frame.offset)
    return Mesh(np.round(moved.vertices, 7) + 0.0, moved.faces)  # + 0.0: no minus zero


def main(argv: Sequence[str] | None = None) -> int:
    """Write the objects; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=pathlib.Path, help="gets a folder for each object")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(OBJECTS)}; all if none is given")
    args = parser.parse_args(argv)
    if unknown := sorted(set(args.names) - set(OBJECTS)):
        parser.error(f"there is no object {unknown[0]!r}; there are {', '.join(OBJECTS)}")
    try:
        for name in args.names or OBJECTS:
            build(name, args.folder)
            print(args.folder / name)
    except (OSError, ValueError) as error:
        print(f"make_objects: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
