"""Bad meshes and clouds: what MuJoCo refuses, and what it takes without a word, is caught.

Each file goes through the command line: `check` says what is expected and how it ends, `repair`
writes the volume that the object has, or nothing.
"""

import pathlib
import subprocess
import sys

import mujoco
import numpy as np
import pytest

from penspin_style.meshes import check, repair
from penspin_style.meshes.mesh import Mesh, shared, solid
from penspin_style.meshes.wavefront import format_obj, parse_obj
from tests.support import bad_meshes as bad
from tests.support.bad_meshes import BOX, CORNERS, ball, both, stl
from tests.support.shapes import box, sphere, torus
from tests.support.terminal import call
from tests.support.work import at_most

CM3 = 1e-6
SEEN = bad.sampled(box(), 2500)
INCHES = BOX.moved(np.eye(3) / 0.0254, np.zeros(3))

# name: content, exit code and words of `check`, volume after `repair` in cm3 or None if refused,
# options of `repair`
CASES = {
    # what MuJoCo takes without a word
    "half.stl": (stl(CORNERS[:96]), 3, "holes", None, ""),
    "ten_percent_open.stl": (stl(CORNERS[:172]), 3, "8.7% of the surface", None, ""),
    "filled.stl": (stl(CORNERS[:172]), 3, "holes", 60.0, "--max-hole 0.1"),
    "pinholes.stl": (stl(np.delete(CORNERS, [5, 50, 100], axis=0)), 3, "3 holes", 60.0, ""),
    "millimetres.stl": (stl(CORNERS * 1000.0), 3, "50 mm with mm", None, ""),
    "millimetres_said.stl": (stl(CORNERS * 1000.0), 3, "--unit", 60.0, "--unit mm"),
    "inches.obj": (
        format_obj(BOX.moved(np.eye(3) / 0.0254, 0.0)),
        3,
        "--unit",
        60.0,
        "--unit inch",
    ),
    "duplicates.stl": (stl(both(CORNERS, CORNERS)), 3, "duplicate faces", 60.0, ""),
    "both_sides.stl": (stl(both(CORNERS, CORNERS[:, ::-1])), 3, "duplicate faces", 60.0, ""),
    "outlier.stl": (stl(bad.changed((3, 1), 5.0)), 3, "outliers: 1 vertices", 60.0, ""),
    "torus.stl": (stl(torus().triangles), 0, "note  not convex: the hull has 1.5", 58.7, ""),
    "debris.stl": (stl(both(CORNERS, ball(0.001, (0.1, 0, 0)))), 3, "debris", 60.0, ""),
    "two_bodies.stl": (stl(both(CORNERS, ball(at=(0.1, 0, 0)))), 3, "2 bodies", None, ""),
    "largest.stl": (
        stl(both(CORNERS, ball(at=(0.1, 0, 0)))),
        3,
        "separate bodies",
        60.0,
        "--keep largest",
    ),
    "ball_within.stl": (stl(both(CORNERS, ball())), 3, "counted twice", 60.0, ""),
    "cavity.stl": (stl(both(CORNERS, ball()[:, ::-1])), 0, "nested shells", 55.9, ""),
    "overlap.stl": (stl(both(CORNERS, ball(0.01, (0.02, 0, 0)))), 3, "overlap", 62.0, ""),
    "crossing.obj": (format_obj(bad.crossing()), 3, "crosses itself", None, ""),
    "fragments.stl": (stl(bad.blobs(300)), 3, "300 separate parts", None, ""),
    "links.stl": (stl(bad.links()), 3, "2 bodies apart", None, ""),
    "stacked.stl": (stl(bad.stacked()), 0, "", 120.0, ""),
    "handle.stl": (
        stl(both(CORNERS, bad.handle(), ball(at=(0, 0, 0.2)))),
        3,
        "2 bodies apart",
        61.33,
        "--keep largest",
    ),
    "thin_cup.stl": (stl(bad.thin_cup()), 0, "note  not convex", 9.77, ""),
    # orientation
    "inverted.stl": (stl(CORNERS[:, ::-1]), 3, "192 of 192 faces (all)", 60.0, ""),
    "flipped.stl": (stl(bad.flipped(0.3)), 3, "faces look inwards", 60.0, ""),
    "cavity_inverted.stl": (stl(both(CORNERS[:, ::-1], ball())), 3, "(all) look in", 55.9, ""),
    "moebius.stl": (stl(bad.moebius()), 3, "one-sided", None, ""),
    # numbers
    "nan.stl": (stl(bad.changed((3, 1, 0), np.nan)), 3, "not finite: 1 vertices", 60.0, ""),
    "inf.stl": (stl(bad.changed((3, 1, 0), np.inf)), 3, "not finite", 60.0, ""),
    "huge_number.stl": (stl(bad.changed((3, 1), 1e30)), 3, "1e+30, 1e+30", 60.0, ""),
    "all_nan.stl": (stl(CORNERS * np.nan), 3, "no face is left", None, ""),
    "micrometres.stl": (stl(CORNERS * 1e-3), 3, "5e-05 m long", None, ""),
    # faces
    "flat.stl": (stl(CORNERS * (1, 1, 0)), 3, "flat: 40 x 30 x 0 mm", None, ""),
    "one_triangle.stl": (stl(CORNERS[:1]), 3, "no thickness", None, ""),
    "zero.stl": (stl(CORNERS * 0.0), 3, "no face is left", None, ""),
    "degenerate.stl": (stl(both(CORNERS, CORNERS[:5, [0, 0, 0]])), 0, "degenerate", 60.0, ""),
    "unmerged.obj": (bad.unmerged(), 0, "unshared vertices", 60.0, ""),
    "cracks.stl": (stl(bad.cracked()), 3, "holes", 60.0, ""),
    "fin.stl": (stl(bad.fin()), 3, "more than two faces", 60.0, ""),
    "internal_wall.stl": (stl(bad.internal_wall()), 3, "more than two faces", None, ""),
    "edge_to_edge.obj": (format_obj(bad.touching()), 0, "non-manifold edges", 120.0, ""),
    "lid_off.stl": (stl(bad.without_side()), 3, "holes", 60.0, "--max-hole 0.2"),
    # files
    "empty.stl": (b"", 2, "it is empty", None, ""),
    "no_faces.stl": (stl(CORNERS[:0]), 2, "it holds no faces", None, ""),
    "truncated.stl": (stl(CORNERS)[:-100], 2, "192 faces, which are 9684 bytes", None, ""),
    "lying.stl": (stl(CORNERS, count=2**32 - 1), 2, "header says 4294967295 faces", None, ""),
    "ascii_cut.stl": (bad.ascii_stl(CORNERS)[:-500], 2, "cut short", None, ""),
    "ascii_called_binary.stl": (bad.ascii_stl(CORNERS), 0, "", 60.0, ""),
    "binary_called_ascii.stl": (stl(CORNERS, header=b"solid scan"), 0, "", 60.0, ""),
    "photo.stl": (b"\xff\xd8\xff\xe0" + bytes(500), 2, "a JPEG image called .stl", None, ""),
    "error_page.stl": (b"<!DOCTYPE html><html>404</html>" * 9, 2, "a web page called", None, ""),
    "ply_called.obj": (bad.ply(BOX), 2, "a PLY file called .obj", None, ""),
    "noise.stl": (np.random.default_rng(0).bytes(5000), 2, "or no STL file", None, ""),
    "scan.glb": (b"glTF" + bytes(99), 2, ".glb is none of .stl .obj .ply", None, ""),
    "polygons.obj": (bad.polygons(), 0, "", 60.0, ""),
    "out_of_range.obj": (format_obj(BOX) + b"f 1 2 999\n", 2, "vertex 999, but the file", None, ""),
    "zero_index.obj": (format_obj(BOX) + b"f 0 1 2\n", 2, "names vertex 0", None, ""),
    "far_negative.obj": (format_obj(BOX) + b"f -1 -2 -999\n", 2, "names vertex -999", None, ""),
    "words.obj": (format_obj(BOX) + b"f one two three\n", 2, "line 291", None, ""),
    "no_number.obj": (b"v 0 0 x\n" + format_obj(BOX), 2, "a value is no number", None, ""),
    "big_endian.ply": (bad.ply(BOX, order=">"), 0, "", 60.0, ""),
    "ascii.ply": (bad.ascii_ply(BOX), 0, "", 60.0, ""),
    "too_many_said.ply": (bad.ply(BOX, vertices=10**9), 2, "says 1000000000 of", None, ""),
    "too_few_said.ply": (bad.ply(BOX, vertices=90), 2, "header", None, ""),
    "ascii_cut.ply": (bad.ascii_ply(BOX)[:-60], 2, "ends before", None, ""),
    "header_only.ply": (b"ply\nformat ascii 1.0\n", 2, "no PLY header", None, ""),
    # clouds
    "points.ply": (bad.cloud(SEEN), 0, "", 60.0, ""),
    "points.xyz": (bad.xyz(SEEN), 0, "", 60.0, ""),
    "points.npz": (bad.npz(points=SEEN), 0, "", 60.0, ""),
    "points_mm.xyz": (bad.xyz(SEEN * 1000.0), 3, "50 mm with mm", 60.0, "--unit mm"),
    "noisy.xyz": (bad.xyz(bad.sampled(box(), 2500, noise=3e-4)), 0, "", 60.0, ""),
    "three.xyz": (bad.xyz(SEEN[:3]), 3, "3 points, at least 100", None, ""),
    "outliers.xyz": (
        bad.xyz(both(SEEN, np.random.default_rng(0).uniform(-0.3, 0.3, (50, 3)))),
        0,
        "50 points are far",
        60.0,
        "",
    ),
    "nan.npz": (bad.npz(points=both(SEEN, np.full((9, 3), np.nan))), 0, "9 points are", 60.0, ""),
    "plane.xyz": (bad.xyz(SEEN * (1, 1, 0)), 3, "of a plane", None, ""),
    "one_side.xyz": (bad.xyz(bad.halved(SEEN)), 3, "no points near", None, ""),
    "fog.xyz": (
        bad.xyz(np.random.default_rng(0).normal(0, 0.02, (3000, 3))),
        3,
        "from the surface",
        None,
        "",
    ),
    "colours.xyz": (bad.xyz(np.hstack([SEEN, 99 * SEEN**0])), 2, "are they colours?", None, ""),
    "ragged.xyz": (b"0 0 0\n1 1\n", 2, "line 2 has another number of columns", None, ""),
    "other_key.npz": (bad.npz(pts=SEEN), 2, "none of ['points', 'xyz'", None, ""),
    "objects.npz": (bad.npz(points=np.array([[{}]])), 2, "no readable .npz", None, ""),
    "bomb.npz": (bad.zip_bomb(), 2, "it unpacks to 268435456 bytes", None, ""),
    "cut.npz": (bad.npz(points=SEEN)[:5000], 2, "no readable .npz", None, ""),
}


@pytest.mark.parametrize("name", CASES)
def test_a_bad_file_is_caught_and_repaired_or_refused(name, tmp_path, capsys):
    content, code, said, volume, options = CASES[name]
    file = tmp_path / name
    file.write_bytes(content)
    with at_most(10.0):
        found = call(f"real2sim check {file}")
    out, err = capsys.readouterr()
    assert found == code, out + err
    assert said in out + err
    assert "Traceback" not in err and len(err) < 400
    assert (err == "") == (code != 2)
    folder = tmp_path / "new"
    with at_most(10.0):
        found = call(f"real2sim repair {file} --out {folder} {options}")
    out, err = capsys.readouterr()
    assert file.read_bytes() == content
    written = list(folder.glob("*")) if folder.exists() else []
    if volume is None:
        assert found == (2 if code == 2 else 3), out + err
        assert not written
        return
    assert found == 0, out + err
    (copy,) = written
    assert solid(parse_obj(copy.read_bytes())).volume == pytest.approx(volume * CM3, rel=0.01)
    assert call(f"real2sim check {copy}") == 0


# rows of the table in docs/real2sim.md
SILENT = {
    "half of its faces missing": "half.stl",
    "10 % of its faces missing": "ten_percent_open.stl",
    "in millimetres": "millimetres.stl",
    "each face twice": "duplicates.stl",
    "one vertex 9 m away": "outlier.stl",
    "a ball within it, looking outwards": "ball_within.stl",
    "a cavity within it (really x0.93)": "cavity.stl",
    "a second body beside it, of 4 g": "two_bodies.stl",
    "a letter for a coordinate (OBJ)": "no_number.obj",
    "a torus in its place (really x0.98)": "torus.stl",
}


@pytest.mark.parametrize("what", SILENT)
def test_the_page_says_what_mujoco_makes_of_it_and_what_the_check_says(what, tmp_path, capsys):
    name = SILENT[what]
    (tmp_path / name).write_bytes(CASES[name][0])
    model = mujoco.MjModel.from_xml_string(
        f"""<mujoco><asset><mesh name="m" file="{tmp_path / name}"/></asset><worldbody><body>
        <freejoint/><geom type="mesh" mesh="m" density="1000"/></body></worldbody></mujoco>"""
    )
    ratio = model.body_mass[1] / 0.06
    said = f"x{ratio:.2f}" if ratio < 1e3 else f"x{ratio:.0e}"
    page = (pathlib.Path(__file__).parents[2] / "docs" / "real2sim.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| {what} |")]
    _, _, mass, finding, _ = (cell.strip() for cell in row.split("|"))
    assert mass == said
    call(f"real2sim check {tmp_path / name}")
    out, err = capsys.readouterr()
    level, _, kind = finding.partition(", ")
    assert f"{level:5} {kind}:" in out if level != "unreadable" else "no number" in err


def test_each_of_the_five_that_mujoco_takes_without_a_word_says_so(tmp_path, capsys):
    for name in ("half", "millimetres", "duplicates", "outlier", "torus"):
        file = tmp_path / f"{name}.stl"
        file.write_bytes(CASES[file.name][0])
        call(f"real2sim check {file}")
        assert "without a word" in capsys.readouterr().out, name


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path, capsys):
    file = tmp_path / "sparse.stl"
    with file.open("wb") as opened:
        opened.truncate(2**40)
    assert call(f"real2sim check {file}") == 2
    assert "has 1099511627776 bytes, at most" in capsys.readouterr().err


def test_what_is_no_file_is_refused(tmp_path, capsys):
    (tmp_path / "folder.stl").mkdir()
    for name in ("folder.stl", "missing.stl"):
        assert call(f"real2sim check {tmp_path / name}") == 2
        err = capsys.readouterr().err
        assert name in err and err.count("\n") == 1


def test_more_faces_than_mujoco_takes_are_decimated(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(check, "MAX_FACES", 4000)
    monkeypatch.setattr(repair, "MAX_FACES", 4000)
    monkeypatch.setattr(repair, "_DECIMATED", 2000)
    file = tmp_path / "fine.stl"
    file.write_bytes(stl(sphere(rings=48, around=48).triangles))
    assert call(f"real2sim repair {file} --out {tmp_path / 'new'}") == 0
    said = capsys.readouterr().out
    assert "fault too many faces: 4512 faces" in said and "decimated 4512 faces to 2000" in said
    volume = solid(parse_obj((tmp_path / "new" / "fine.obj").read_bytes())).volume
    assert volume == pytest.approx(4 / 3 * np.pi * 0.03**3, rel=0.01)


# rusage would count the memory of the process that started it, too
_MEASURED = """
import pathlib, sys, time
from penspin_style.__main__ import main
code = main(["real2sim", "repair", sys.argv[1], "--unit", "m", "--out", sys.argv[2]])
memory = pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print(time.process_time(), memory)
sys.exit(code)
"""


@pytest.mark.slow
def test_no_file_takes_more_than_ten_seconds_or_a_gigabyte(tmp_path):
    big = {
        "500000_faces.stl": stl(sphere(rings=500, around=500).triangles),
        "500000_turned.stl": stl(sphere(rings=500, around=500).triangles[:, ::-1]),
        "600000_faces.stl": stl(sphere(rings=600, around=500).triangles),
        "300000_faces.obj": format_obj(sphere(rings=300, around=500)),
        "400000_faces.ply": bad.ascii_ply(sphere(rings=400, around=500)),
        "200000_points.npz": bad.npz(points=bad.sampled(torus(), 200_000)),
        "large.xyz": bad.xyz(bad.sampled(torus(), 300_000)),
    }
    contents = {**{name: case[0] for name, case in CASES.items()}, **big}
    cost = {}
    for name, content in contents.items():
        file = tmp_path / name
        file.write_bytes(content)
        done = subprocess.run(
            [sys.executable, "-c", _MEASURED, str(file), str(tmp_path / "new")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode in (0, 2, 3) and "Traceback" not in done.stderr, (name, done)
        seconds, kilobytes = done.stdout.splitlines()[-1].split()
        cost[name] = (float(seconds), float(kilobytes) / 1e6)
    for name, (seconds, gigabytes) in sorted(cost.items(), key=lambda item: item[1]):
        print(f"{name:28} {seconds:6.2f} s {gigabytes:6.3f} GB")
    assert max(seconds for seconds, _ in cost.values()) <= 10.0
    assert max(gigabytes for _, gigabytes in cost.values()) <= 1.0


@pytest.mark.parametrize("turn", [0, 1])
def test_a_mesh_in_any_place_and_scale_is_repaired_alike(turn, tmp_path, capsys):
    rng = np.random.default_rng(turn)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    broken = shared(np.delete(bad.flipped(0.3), [7, 80], axis=0))
    moved = Mesh(broken.vertices @ rotation.T * 3.0 + rng.normal(size=3), broken.faces)
    file = tmp_path / "moved.obj"
    file.write_bytes(format_obj(moved))
    assert call(f"real2sim repair {file} --out {tmp_path / 'new'}") == 0, capsys.readouterr()
    body = solid(parse_obj((tmp_path / "new" / "moved.obj").read_bytes()))
    assert body.volume == pytest.approx(27 * 60.0 * CM3, rel=1e-4)
