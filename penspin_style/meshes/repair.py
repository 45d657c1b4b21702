"""Repair a mesh, step by step, each said; what cannot be repaired honestly is refused.

The result is checked again: it has no fault, or there is none.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from penspin_style.meshes import edit, topology
from penspin_style.meshes.check import DEBRIS, Checked, check
from penspin_style.meshes.cloud import reconstruct
from penspin_style.meshes.files import Cloud
from penspin_style.meshes.finding import MAX_FACES, MAX_HOLE, UNITS, Finding
from penspin_style.meshes.libraries import need
from penspin_style.meshes.mesh import Mesh, solid

_MAX_LOST = 0.02
"""Share of the faces that may be left out as not finite."""
_WELD = 1e-5
"""Distance over length within which vertices at open edges are made one."""
_DECIMATED = MAX_FACES // 2

Keep = Literal["largest"]


@dataclass(frozen=True)
class RepairOptions:
    """How far a repair may go."""

    unit: str | None = None
    max_hole: float = MAX_HOLE
    keep: Keep | None = None
    """Which of separate bodies to keep; None refuses them."""


@dataclass
class Repaired:
    """A mesh without faults, or why there is none."""

    before: Checked
    after: Checked
    steps: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[Finding]:
        """Return the faults that are left; the mesh is to be used only without."""
        return self.after.faults

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "before": {
                "findings": [finding.facts() for finding in self.before.findings],
                **self.before.facts,
            },
            "steps": self.steps,
            "after": {
                "findings": [finding.facts() for finding in self.after.findings],
                **self.after.facts,
            },
        }


def inspect_scan(scan: Mesh | Cloud, options: RepairOptions) -> Repaired:
    """Return the check of what a file holds, of a cloud that of its reconstructed surface."""
    made, mesh = _surface(scan, options)
    if mesh is None:
        return made
    found = check(mesh, unit=options.unit)
    return _with_cloud(made, Repaired(found, found))


def repair_scan(scan: Mesh | Cloud, options: RepairOptions) -> Repaired:
    """Return as `repair` what a file holds, of a cloud its reconstructed surface."""
    made, mesh = _surface(scan, options)
    return made if mesh is None else _with_cloud(made, repair(mesh, options))


def _surface(scan: Mesh | Cloud, options: RepairOptions) -> tuple[Repaired, Mesh | None]:
    """Return what a cloud's reconstruction says, and a mesh, None if that has faults."""
    nothing = Checked(Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64)))
    if isinstance(scan, Mesh):
        return Repaired(nothing, nothing), scan
    made = reconstruct(scan, unit=options.unit, max_gap=options.max_hole)
    nothing.findings, nothing.facts = made.findings, {"points": len(scan.points)}
    said = Repaired(nothing, nothing, made.steps)
    return said, None if said.left else made.mesh


def _with_cloud(made: Repaired, found: Repaired) -> Repaired:
    found.before.findings[:0] = made.before.findings
    found.before.facts |= made.before.facts
    found.steps[:0] = made.steps
    return found


def repair(mesh: Mesh, options: RepairOptions) -> Repaired:
    """Return the repaired mesh in metres, what was found before and after, and each step."""
    before = check(mesh, unit=options.unit)
    if any(finding.kind == "empty" for finding in before.faults):
        return Repaired(before, before)
    steps: list[str] = []
    if options.unit not in (None, "m"):
        steps.append(f"scaled by {UNITS[options.unit]:g}: it is in {options.unit}")
    scaled = Mesh(mesh.vertices * UNITS[options.unit or "m"], mesh.faces)
    fixed = _cleaned(scaled, steps)
    if fixed is None or edit.is_flat(fixed):
        return Repaired(before, before, steps)
    fixed = _without_outliers(fixed, steps)
    fixed = _sewn(fixed, steps)
    fixed = _without_parts(fixed, options.keep, steps)
    fixed = _without_flaps(fixed, steps)
    fixed = _turned(fixed, steps)
    fixed = _filled(fixed, options.max_hole, steps)
    fixed = _joined(fixed, steps)
    fixed = _fewer(fixed, steps)
    after = check(fixed, unit="m") if steps else before
    return Repaired(before, after, steps)


def _cleaned(mesh: Mesh, steps: list[str]) -> Mesh | None:
    lost = edit.bad_vertices(mesh)[mesh.faces].any(axis=1)
    if lost.sum() > _MAX_LOST * len(lost):
        return None
    if lost.any():
        steps.append(f"left out {int(lost.sum())} faces whose vertices are not finite")
    mesh = edit.welded(edit.used(Mesh(mesh.vertices, mesh.faces[~lost])))
    for what, which in (
        ("that name a vertex twice", edit.degenerate),
        ("that are there twice", edit.duplicates),
    ):
        bad = which(mesh)
        if bad.any():
            steps.append(f"left out {int(bad.sum())} faces {what}")
            mesh = edit.used(Mesh(mesh.vertices, mesh.faces[~bad]))
    return mesh


def _without_outliers(mesh: Mesh, steps: list[str]) -> Mesh:
    far = edit.outliers(mesh)
    if not len(far):
        return mesh
    bad = np.isin(mesh.faces, far).any(axis=1)
    steps.append(f"left out {len(far)} outlying vertices with their {int(bad.sum())} faces")
    return edit.used(Mesh(mesh.vertices, mesh.faces[~bad]))


def _sewn(mesh: Mesh, steps: list[str]) -> Mesh:
    """Close cracks narrower than anybody can see."""
    before = int(topology.edges(mesh).open.sum())
    if not before:
        return mesh
    distance = _WELD * float(mesh.size.max())
    sewn = edit.welded(mesh, distance)
    sewn = edit.used(Mesh(sewn.vertices, sewn.faces[~edit.degenerate(sewn)]))
    sewn = Mesh(sewn.vertices, sewn.faces[~edit.duplicates(sewn)])
    after = int(topology.edges(sewn).open.sum())
    if after >= before:
        return mesh
    steps.append(f"made vertices within {distance:.2g} m one: {before - after} open edges fewer")
    return sewn


def _without_parts(mesh: Mesh, keep: Keep | None, steps: list[str]) -> Mesh:
    part = topology.parts(mesh, topology.edges(mesh))
    share = topology.part_areas(mesh, part)
    share = share / share.sum()
    left = share >= DEBRIS
    if keep == "largest" and left.sum() > 1:
        big = np.flatnonzero(left)
        body = edit.bodies(mesh, part, big)
        inside = topology.enclosing(mesh, part)[big] >= 0
        areas = np.bincount(body, weights=share[big])
        left[big[(body != areas.argmax()) & ~inside]] = False
    if left.all() or not left.any():
        return mesh
    kept = left[part]
    lost, area = len(share) - int(left.sum()), float(share[~left].sum())
    steps.append(f"left out {lost} parts beside the object, {area:.2g} of the surface")
    return edit.used(Mesh(mesh.vertices, mesh.faces[kept]))


def _without_flaps(mesh: Mesh, steps: list[str]) -> Mesh:
    """Leave out patches that hang at an edge of more than two faces and end in the air."""
    at = topology.edges(mesh)
    if not (at.count > 2).any():
        return mesh
    patch = topology.parts(mesh, at, across=at.count == 2)
    loose = np.unique(patch[at.open[at.of_face].any(axis=1)])
    kept = ~np.isin(patch, loose)
    rest = Mesh(mesh.vertices, mesh.faces[kept])
    if kept.all() or not kept.any() or topology.edges(rest).open.any():
        return mesh
    steps.append(f"left out {len(loose)} flaps of {int((~kept).sum())} faces")
    return edit.used(rest)


def _turned(mesh: Mesh, steps: list[str]) -> Mesh:
    sides = topology.orientation(mesh)
    if sides.one_sided or not sides.turned.any():
        return mesh
    steps.append(f"turned {int(sides.turned.sum())} of {len(mesh.faces)} faces outwards")
    return topology.turned(mesh, sides.turned)


def _filled(mesh: Mesh, max_hole: float, steps: list[str]) -> Mesh:
    loops = topology.holes(mesh, topology.edges(mesh))
    if not loops:
        return mesh
    share = edit.patch_area(mesh, loops) / topology.areas(mesh).sum()
    if share > max_hole:
        return mesh
    vertices, faces = [mesh.vertices], [mesh.faces]
    count = len(mesh.vertices)
    for loop in loops:
        if len(loop) == 3:
            faces.append(loop[None])
            continue
        middle = mesh.vertices[loop].mean(axis=0)
        vertices.append(middle[None])
        hub = np.full(len(loop), count)
        faces.append(np.stack([loop, np.roll(loop, -1), hub], axis=1))
        count += 1
    steps.append(f"filled {len(loops)} holes: {share:.2%} of the surface is made up")
    return Mesh(np.concatenate(vertices), np.concatenate(faces))


def _joined(mesh: Mesh, steps: list[str]) -> Mesh:
    """Unite closed parts that overlap, or lie within each other without being a cavity."""
    at = topology.edges(mesh)
    part = topology.parts(mesh, at)
    if not at.is_closed or part.max() == 0 or part.max() >= 64:
        return mesh
    if edit.counted_twice(mesh) == 0.0:
        return mesh
    library = need("manifold3d")
    outwards = topology.part_volumes(mesh, part) > 0.0
    solids = [edit.part_solid(mesh, part == k) for k in np.flatnonzero(outwards)]
    hollows = [edit.part_solid(mesh, part == k) for k in np.flatnonzero(~outwards)]
    if any(one is None for one in (*solids, *hollows)):
        return mesh
    united = library.Manifold.batch_boolean(solids, library.OpType.Add)
    if hollows:
        united = library.Manifold.batch_boolean([united, *hollows], library.OpType.Subtract)
    out = united.to_mesh64()
    result = Mesh(
        np.array(out.vert_properties[:, :3], np.float64), np.array(out.tri_verts, np.int64)
    )
    lost = 1.0 - solid(result).volume / solid(mesh).volume
    steps.append(f"united {part.max() + 1} overlapping parts: {lost:.1%} of the volume was double")
    return edit.used(result)


def _fewer(mesh: Mesh, steps: list[str]) -> Mesh:
    if len(mesh.faces) <= MAX_FACES:
        return mesh
    fewer = edit.decimated(mesh, _DECIMATED)
    change = 0.0
    if topology.edges(mesh).is_closed:
        change = solid(fewer).volume / solid(mesh).volume - 1.0
    steps.append(f"decimated {len(mesh.faces)} faces to {len(fewer.faces)}: volume {change:+.2%}")
    return fewer
