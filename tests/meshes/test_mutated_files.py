"""Files with random damage: unreadable in one line, or with findings; never anything else."""

import numpy as np
import pytest

from penspin_style.meshes.files import read_scan
from penspin_style.meshes.mesh import Mesh, MeshFileError, shared
from penspin_style.meshes.repair import RepairOptions, repair, repair_scan
from penspin_style.meshes.topology import edges
from penspin_style.meshes.wavefront import format_obj
from tests.support import bad_meshes as bad
from tests.support.shapes import box, torus

POINTS = bad.sampled(box(), 150)
WHOLE = {
    "a.stl": bad.stl(box().triangles),
    "b.stl": bad.ascii_stl(box().triangles),
    "c.obj": format_obj(box()),
    "d.obj": bad.polygons(),
    "e.ply": bad.ply(box()),
    "f.ply": bad.ply(box(), order=">"),
    "g.ply": bad.ascii_ply(box()),
    "h.ply": bad.cloud(POINTS),
    "i.npz": bad.npz(points=POINTS),
    "j.xyz": bad.xyz(POINTS),
}
ODD = (b"-1", b"1e308", b"nan", b"inf", b" ", b"\n", b"999999999999", b"0x", b"/", b"1.5")


def mutated(content, rng):
    found = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(found) + 1))
        kind = rng.integers(5)
        if kind == 0 and at < len(found):
            found[at] = rng.integers(256)
        elif kind == 1:
            del found[at : at + rng.integers(1, 40)]
        elif kind == 2:
            found[at:at] = rng.bytes(rng.integers(1, 20))
        elif kind == 3:
            found[at:at] = found[at : at + rng.integers(1, 60)]
        else:
            found[at:at] = ODD[rng.integers(len(ODD))]
    return bytes(found)


def check_mutations(folder, count, seed):
    rng = np.random.default_rng(seed)
    read = 0
    for _ in range(count):
        name = list(WHOLE)[rng.integers(len(WHOLE))]
        file = folder / name
        file.write_bytes(mutated(WHOLE[name], rng))
        try:
            scan = read_scan(file)
        except MeshFileError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)
            continue
        read += 1
        fixed = repair_scan(scan, RepairOptions(max_hole=0.5))
        assert fixed.left or edges(fixed.after.mesh).is_closed
    assert read > 0


def broken(rng):
    """A mesh with random faces lost, double, turned, moved, torn off or scattered."""
    triangles = (torus(around=16, across=8) if rng.random() < 0.5 else box(cuts=3)).triangles
    for _ in range(rng.integers(1, 5)):
        some = rng.integers(len(triangles), size=rng.integers(1, 20))
        kind = rng.integers(6)
        if kind == 0:
            triangles = np.delete(triangles, some, axis=0)
        elif kind == 1:
            triangles = np.concatenate([triangles, triangles[some]])
        elif kind == 2:
            triangles[some] = triangles[some][:, ::-1]
        elif kind == 3:
            triangles[some, rng.integers(3)] += rng.normal(0.0, 0.01, (len(some), 3))
        elif kind == 4:
            triangles = np.concatenate([triangles, rng.normal(0.0, 0.02, (5, 3, 3))])
        else:
            triangles[some] *= 10.0 ** rng.integers(-6, 3)
    return shared(triangles)


def check_broken(count, seed):
    rng = np.random.default_rng(seed)
    done = 0
    for _ in range(count):
        mesh = broken(rng)
        before = mesh.vertices.copy()
        fixed = repair(mesh, RepairOptions(max_hole=0.3))
        np.testing.assert_array_equal(mesh.vertices, before)
        done += not fixed.left
        assert fixed.left or edges(fixed.after.mesh).is_closed
        if not fixed.left:
            again = repair(fixed.after.mesh, RepairOptions())
            assert not again.left
    assert 0 < done < count


def test_random_bytes_in_a_file_are_unreadable_or_found(tmp_path):
    check_mutations(tmp_path, 150, seed=0)


def test_random_damage_to_a_mesh_is_repaired_to_a_closed_one_or_refused():
    check_broken(30, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_much_random_damage(tmp_path, seed):
    check_mutations(tmp_path, 2000, seed)
    check_broken(300, seed)


def test_nothing_is_made_of_no_faces():
    nothing = Mesh(np.zeros((0, 3)), np.zeros((0, 3), dtype=np.int64))
    assert [finding.kind for finding in repair(nothing, RepairOptions()).left] == ["empty"]
