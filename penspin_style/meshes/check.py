"""Check a mesh: what MuJoCo would refuse, and what it takes without a word."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penspin_style.meshes import topology
from penspin_style.meshes.edit import (
    FARTHEST,
    bad_vertices,
    bodies,
    convex_hull,
    counted_twice,
    decimated,
    degenerate,
    duplicates,
    is_flat,
    outliers,
    patch_area,
    used,
    welded,
)
from penspin_style.meshes.finding import MAX_FACES, UNITS, Finding, unit_finding
from penspin_style.meshes.mesh import Mesh, principal_frame, solid

DEBRIS = 0.01
"""Share of the whole surface below which a separate part is debris of a scan."""
_MAX_FRAGMENTS = 200
_CONVEX = 1.02
"""Hull over mesh volume of what counts as convex."""
_HULL_FACES = 20_000
_TWICE = 0.01
"""Share of the volume that may be counted twice: about what the samples can tell."""
_THICKEN = "give it a thickness, or use a thin box in MuJoCo"
_REPAIR = "penspin real2sim repair mends it"


@dataclass
class Checked:
    """A mesh and what was found."""

    mesh: Mesh
    """In metres; vertices that no face uses, and faces that are none, are left out."""
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    """faces, vertices, size (m), parts, closed, volume (m^3), inertia, hull_volume, ..."""

    @property
    def faults(self) -> list[Finding]:
        """Return what makes the mesh untrustworthy."""
        return [finding for finding in self.findings if finding.level == "fault"]

    def fault(self, kind: str, what: str, in_mujoco: str, remedy: str) -> None:
        """Add what makes the mesh untrustworthy."""
        self.findings.append(Finding("fault", kind, what, in_mujoco, remedy))

    def note(self, kind: str, what: str, in_mujoco: str, remedy: str) -> None:
        """Add what is worth knowing."""
        self.findings.append(Finding("note", kind, what, in_mujoco, remedy))


def check(mesh: Mesh, *, unit: str | None = None) -> Checked:
    """Return the mesh in metres, and all findings.

    unit: key of `UNITS`; None takes the file's numbers for metres and says so if that is unlikely.
    """
    found = Checked(Mesh(mesh.vertices * UNITS[unit or "m"], mesh.faces))
    found.facts["faces"], found.facts["vertices"] = len(mesh.faces), len(mesh.vertices)
    _check_numbers(found)
    _check_faces(found)
    if not len(found.mesh.faces):
        found.fault("empty", "no face is left", "refuses it", "scan it anew")
        return found
    rest = _check_outliers(found)
    size = found.mesh.size
    found.facts["size"] = [round(float(x), 9) for x in size]
    if (odd := unit_finding(float(rest.max()), unit)) is not None:
        found.findings.append(odd)
    if is_flat(found.mesh):
        found.fault("flat", f"{_millimetres(size)} mm, no thickness", "refuses it", _THICKEN)
        return found
    at = topology.edges(found.mesh)
    _check_parts(found, at)
    _check_surface(found, at)
    spoiled = ("fragments", "orientation", "one-sided")
    if at.is_closed and not any(finding.kind in spoiled for finding in found.findings):
        _check_volume(found)
    return found


def _millimetres(size: np.ndarray) -> str:
    return " x ".join(f"{1000.0 * float(x):.4g}" for x in size)


def _check_numbers(found: Checked) -> None:
    bad = bad_vertices(found.mesh)
    if bad.any():
        first = int(np.argmax(bad))
        where = ", ".join(f"{x:g}" for x in found.mesh.vertices[first])
        found.fault(
            "not finite",
            f"{int(bad.sum())} vertices are NaN, infinite or beyond {FARTHEST:g}, the first is "
            f"vertex {first}: {where}",
            "refuses it",
            f"{_REPAIR}, if only a few faces have them",
        )
    lost = bad[found.mesh.faces].any(axis=1)
    found.mesh = used(Mesh(found.mesh.vertices, found.mesh.faces[~lost]))


def _check_faces(found: Checked) -> None:
    count = len(found.mesh.faces)
    if count > MAX_FACES:
        found.fault(
            "too many faces",
            f"{count} faces, at most {MAX_FACES}",
            "refuses STL files of more, and compiles others for minutes",
            f"{_REPAIR}: it decimates",
        )
    mesh = welded(found.mesh)
    if len(mesh.vertices) < len(found.mesh.vertices):
        found.note(
            "unshared vertices",
            f"{len(found.mesh.vertices) - len(mesh.vertices)} vertices repeat another",
            "merges them",
            "they are made one here",
        )
    bad = degenerate(mesh)
    if bad.any():
        found.note(
            "degenerate faces",
            f"{int(bad.sum())} faces name a vertex twice, the first is face {int(bad.argmax())}",
            "takes them, and its exact inertia may refuse them",
            "they are left out here",
        )
    mesh = Mesh(mesh.vertices, mesh.faces[~bad])
    again = duplicates(mesh)
    if again.any():
        found.fault(
            "duplicate faces",
            f"{int(again.sum())} of {len(again)} faces are there before, the first is face "
            f"{int(again.argmax())}",
            f"counts their volume again without a word: mass up to x{1 + again.mean() * 2:.2g}",
            _REPAIR,
        )
    found.mesh = used(Mesh(mesh.vertices, mesh.faces[~again]))


def _check_outliers(found: Checked) -> np.ndarray:
    """Return the size (3,) without them."""
    far = outliers(found.mesh)
    rest = np.ptp(np.delete(found.mesh.vertices, far, axis=0), axis=0)
    if not len(far):
        return rest
    where = ", ".join(f"{x:.4g}" for x in found.mesh.vertices[far[0]])
    found.fault(
        "outliers",
        f"{len(far)} vertices far from all others, the first at {where}; without them it is "
        f"{_millimetres(rest)} mm",
        "takes them without a word: the hull and the mass reach out to them",
        _REPAIR,
    )
    return rest


def _check_parts(found: Checked, at: topology.Edges) -> None:
    part = topology.parts(found.mesh, at)
    share = topology.part_areas(found.mesh, part)
    share = share / share.sum()
    found.facts["parts"] = len(share)
    small = int((share < DEBRIS).sum())
    if len(share) > _MAX_FRAGMENTS:
        found.fault(
            "fragments",
            f"{len(share)} separate parts",
            "takes their common hull",
            "reconstruct the surface anew; repair it in a modelling program",
        )
    elif small and len(share) > 1:
        found.fault(
            "debris",
            f"{small} parts of less than {DEBRIS:.0%} of the surface each beside the object",
            "takes them into the hull and the inertia without a word",
            f"{_REPAIR}: it leaves them out",
        )
    if len(share) - small > 1 and len(share) <= _MAX_FRAGMENTS:
        within = topology.enclosing(found.mesh, part)
        big = np.flatnonzero(share >= DEBRIS)
        loose = int((within[big] < 0).sum())
        found.facts["bodies"] = loose
        nested = len(big) - loose
        if nested:
            found.note(
                "nested shells",
                f"{nested} parts lie within another",
                "adds their volume without a word, a cavity's as well",
                "a shell that looks inwards is a cavity; one that looks outwards counts twice",
            )
        apart = bodies(found.mesh, part, big[within[big] < 0]).max() + 1 if loose > 1 else 1
        if apart > 1:
            found.fault(
                "separate bodies",
                f"{apart} bodies apart from each other",
                "takes one hull around all of them without a word",
                "--keep largest leaves the others out; or cut them into files",
            )


def _check_surface(found: Checked, at: topology.Edges) -> None:
    found.facts["closed"] = at.is_closed
    sides = topology.orientation(found.mesh)
    turned = int(sides.turned.sum())
    tangled = int((at.count > 2).sum())
    if sides.one_sided:
        found.fault(
            "one-sided",
            "the surface has no outside, as a Möbius band",
            "takes it without a word",
            "model it anew as a solid",
        )
    elif turned:
        all_of_them = " (all)" if turned == len(found.mesh.faces) else ""
        found.fault(
            "orientation",
            f"{turned} of {len(found.mesh.faces)} faces{all_of_them} look inwards",
            "guesses with its default inertia, refuses with inertia=exact",
            _REPAIR,
        )
    if at.open.any():
        fixed = topology.turned(found.mesh, sides.turned)
        loops = topology.holes(fixed, topology.edges(fixed))
        share = patch_area(fixed, loops) / topology.areas(fixed).sum()
        found.facts["hole_share"] = round(float(share), 6)
        found.fault(
            "holes",
            f"{len(loops)} holes with {int(at.open.sum())} open edges, {share:.1%} of the surface",
            "takes it without a word: wrong mass, wrong inertia",
            f"{_REPAIR}, up to --max-hole",
        )
    if tangled:
        level = found.fault if at.balance[at.count > 2].any() else found.note
        a = found.mesh.vertices[at.ends[np.argmax(at.count > 2)][0]]
        level(
            "non-manifold edges",
            f"{tangled} edges with more than two faces, the first at "
            + ", ".join(f"{x:.4g}" for x in a),
            "takes them without a word; the volume is defined only if sides balance",
            _REPAIR + " if it is a flap",
        )


def _check_volume(found: Checked) -> None:
    body = solid(found.mesh)
    frame = principal_frame(body)
    found.facts["volume"] = body.volume
    found.facts["inertia_per_density"] = frame.moments.tolist()
    if not body.volume > 1e-9 * float(np.prod(np.maximum(found.mesh.size, 1e-12))):
        found.fault("no volume", f"{body.volume:g} m^3", "refuses it", "model it anew as a solid")
        return
    # the hull of a fine mesh, of which every vertex may be a corner, takes minutes
    coarse = decimated(found.mesh, _HULL_FACES)
    twice = counted_twice(coarse)
    if twice > _TWICE:
        found.fault(
            "overlap",
            f"about {twice:.0%} of the volume is counted twice or inside out: the surface "
            "crosses itself, or parts overlap",
            "counts it twice without a word",
            f"{_REPAIR} if parts overlap; else remesh it (voxel remesh)",
        )
    hull = float(convex_hull(coarse.vertices).volume)
    found.facts["hull_volume"] = hull
    ratio = hull / body.volume
    if ratio > _CONVEX:
        found.note(
            "not convex",
            f"the hull has {ratio:.3g} times the volume",
            "collides with the hull, and by default weighs it, without a word",
            "penspin real2sim convert splits it and gives the exact mass and inertia",
        )
