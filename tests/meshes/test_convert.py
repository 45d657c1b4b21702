"""Conversion: mass and inertia against the analytic bodies, convex parts, cache, reports."""

import json
import pathlib

import mujoco
import numpy as np
import pytest

from penspin_style.meshes import decompose, topology
from penspin_style.meshes.cloud import reconstruct
from penspin_style.meshes.files import Cloud
from penspin_style.meshes.folder import read_object
from penspin_style.meshes.mesh import Mesh, principal_frame, solid
from penspin_style.meshes.repair import RepairOptions, repair
from penspin_style.meshes.trial import object_spec
from penspin_style.meshes.wavefront import format_obj
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.viewer import sheet
from tests.support.bad_meshes import sampled, stl
from tests.support.shapes import box, cylinder, lathe, sphere, torus
from tests.support.terminal import call

RHO = 700.0
R, TUBE, HEIGHT = 0.03, 0.01, 0.08
SIDES = np.array([0.04, 0.03, 0.05])


def analytic(name):
    """Mass and sorted principal moments at density RHO."""
    if name == "sphere":
        mass = RHO * 4 / 3 * np.pi * R**3
        moments = [0.4 * mass * R**2] * 3
    elif name == "box":
        mass = RHO * SIDES.prod()
        moments = mass * ((SIDES**2).sum() - SIDES**2) / 12
    elif name == "cylinder":
        mass = RHO * np.pi * R**2 * HEIGHT
        across = mass * (3 * R**2 + HEIGHT**2) / 12
        moments = [across, across, mass * R**2 / 2]
    else:
        mass = RHO * 2 * np.pi**2 * R * TUBE**2
        across = mass * (4 * R**2 + 5 * TUBE**2) / 8
        moments = [across, across, mass * (4 * R**2 + 3 * TUBE**2) / 4]
    return mass, np.sort(moments)


BODIES = {
    "sphere": sphere(R),
    "box": box(SIDES, cuts=4),
    "cylinder": cylinder(R, HEIGHT),
    "torus": torus(R, TUBE, around=96, across=48),
}


@pytest.mark.parametrize("scale", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("name", BODIES)
def test_inertia_of_a_repaired_mesh_is_that_of_the_body(name, scale):
    rng = np.random.default_rng(1)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    mesh = BODIES[name]
    vertices = scale * mesh.vertices @ turn.T + rng.normal(size=3)
    flip = rng.random(len(mesh.faces)) < 0.3
    faces = np.where(flip[:, None], mesh.faces[:, ::-1], mesh.faces)
    kept = np.delete(faces, [11, 47], axis=0)
    broken = Mesh(vertices, np.concatenate([kept, kept[:20]]))
    fixed = repair(broken, RepairOptions())
    assert not fixed.left and len(fixed.steps) == 3, fixed.steps
    body = solid(fixed.after.mesh)
    mass, moments = analytic(name)
    assert RHO * body.volume == pytest.approx(mass * scale**3, rel=0.01)
    frame = principal_frame(body)
    np.testing.assert_allclose(np.sort(frame.moments) * RHO, moments * scale**5, rtol=0.01)
    centred = fixed.after.mesh.moved(frame.rotation, frame.offset)
    np.testing.assert_allclose(solid(centred).centre, 0.0, atol=1e-9 * scale)


@pytest.mark.parametrize("name", BODIES)
def test_inertia_of_a_reconstructed_cloud_is_near_that_of_the_body(name):
    made = reconstruct(Cloud(sampled(BODIES[name], 4000)))
    assert made.findings == [] and made.mesh is not None
    assert topology.edges(made.mesh).is_closed
    mass, moments = analytic(name)
    body = solid(made.mesh)
    assert RHO * body.volume == pytest.approx(mass, rel=0.01)
    np.testing.assert_allclose(np.sort(principal_frame(body).moments) * RHO, moments, rtol=0.02)


def test_the_hollow_of_a_cup_stays_hollow_when_it_is_reconstructed():
    cup = lathe([(0.03, 0.0), (0.035, 0.09), (0.031, 0.0901), (0.0265, 0.006)])
    made = reconstruct(Cloud(sampled(cup, 12000)))
    assert made.mesh is not None and made.findings == []
    assert solid(made.mesh).volume == pytest.approx(solid(cup).volume, rel=0.03)


@pytest.fixture
def convert(tmp_path, capsys):
    """Write the mesh as NAME.stl and convert it; return exit code, output, folder."""

    def run(mesh, name="scan", options="--density 700", unit=1.0):
        file = tmp_path / f"{name}.stl"
        file.write_bytes(stl(mesh.triangles * unit))
        folder = tmp_path / "objects"
        cache = tmp_path / "cache"
        line = f"real2sim convert {file} --out {folder} --cache {cache} {options}"
        code = call(line)
        return code, capsys.readouterr(), folder / name

    return run


def test_a_box_becomes_an_object_with_its_own_mass_and_rests_as_high_as_it_is(convert):
    code, said, folder = convert(BODIES["box"], options="--density 700 --licence CC0-1.0")
    assert code == 0, said
    found = read_object(folder)
    mass, moments = analytic("box")
    assert found.mass == pytest.approx(mass, rel=1e-6)
    np.testing.assert_allclose(np.sort(found.inertia), moments, rtol=1e-6)
    assert (found.name, found.licence, found.source) == ("scan", "CC0-1.0", "scan.stl")
    assert len(found.collision) == 1
    report = json.loads((folder / "report.json").read_text())
    assert report["trial"]["height"] == pytest.approx(0.025, abs=5e-4)
    assert report["density"] == pytest.approx(700.0)
    assert "scan.stl" in said.out and "42" in said.out.splitlines()[-1]


def test_a_torus_is_split_and_the_second_time_comes_from_the_cache(convert, monkeypatch):
    code, said, folder = convert(BODIES["torus"], options="--mass 0.2")
    assert code == 0, said
    found = read_object(folder)
    _, moments = analytic("torus")
    mass, _ = analytic("torus")
    np.testing.assert_allclose(np.sort(found.inertia), moments * 0.2 / mass, rtol=0.01)
    assert 4 <= len(found.collision) <= 8
    report = json.loads((folder / "report.json").read_text())
    assert report["collision"]["volume_ratio"] == pytest.approx(1.0, abs=0.1)
    assert report["collision"]["uncovered"] < 1e-3
    assert not report["collision"]["cached"]
    # the hole is open: the centre lies in no part
    for part in found.collision_meshes:
        assert abs(topology.winding(part, np.zeros((1, 3)))[0]) < 0.5
    monkeypatch.setattr(decompose, "_CHILD", ("false",))
    code, said, folder = convert(BODIES["torus"], options="--mass 0.2 --replace")
    assert code == 0, said
    assert json.loads((folder / "report.json").read_text())["collision"]["cached"]
    again = read_object(folder)
    for before, after in zip(found.collision_meshes, again.collision_meshes, strict=True):
        np.testing.assert_array_equal(before.vertices, after.vertices)


def test_an_object_loads_in_plain_mujoco_from_its_files(convert):
    _, _, folder = convert(BODIES["cylinder"], name="pin")
    found = read_object(folder)
    xml = f"""<mujoco><compiler meshdir="{folder}"/><asset><mesh name="v" file="visual.obj"/>
    <mesh name="h" file="hull_00.obj"/></asset><worldbody><geom type="plane" size="1 1 .1"/>
    <body pos="0 0 .05"><freejoint/><inertial pos="0 0 0" mass="{found.mass}"
    diaginertia="{" ".join(map(str, found.inertia))}"/>
    <geom type="mesh" mesh="v" contype="0" conaffinity="0"/><geom type="mesh" mesh="h"/>
    </body></worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(xml)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, 500)
    assert data.qpos[2] == pytest.approx(HEIGHT / 2, abs=5e-4)
    np.testing.assert_allclose(np.sort(model.body_inertia[1]), analytic("cylinder")[1], rtol=0.01)


def test_the_mass_of_the_trial_is_the_objects_not_that_of_its_hulls(convert):
    _, _, folder = convert(BODIES["box"], options="--mass 1.5")
    model = object_spec(read_object(folder)).compile()
    assert model.body("object").mass[0] == 1.5
    np.testing.assert_allclose(model.body("object").ipos, 0.0)


def test_a_mesh_with_faults_is_not_converted(convert):
    code, said, folder = convert(Mesh(box().vertices, box().faces[:-2]))
    assert code == 3 and not folder.exists()
    assert "refused, nothing is written: holes" in said.out


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "one of the arguments --density --mass is required"),
        ("--density 0", "above 0"),
        ("--density 500 --mass 1", "not allowed with"),
        ("--mass 1 --hulls 65", "65 is more than 64"),
        ("--mass 1 --max-hole 2", "not a share of 0 to 1"),
        ("--mass 1 --unit feet", "invalid choice: 'feet'"),
    ],
)
def test_an_invalid_command_line_is_refused_in_one_line(options, complaint, convert):
    code, said, folder = convert(box(), options=options)
    assert code == 2 and complaint in said.err and said.err.count("\n") == 1
    assert not folder.exists()


def test_no_object_and_no_input_is_written_over(convert, tmp_path, capsys):
    convert(box())
    code, said, _ = convert(box())
    assert code == 2 and "exists already; choose another --out, or --replace it" in said.err
    file = tmp_path / "same.obj"
    file.write_bytes(format_obj(box()))
    assert call(f"real2sim repair {file} --out {tmp_path} --replace") == 2
    assert "an input, which is never written over" in capsys.readouterr().err
    (tmp_path / "same.stl").write_bytes(stl(box().triangles))
    assert call(f"real2sim repair {file} {tmp_path / 'same.stl'} --out {tmp_path / 'x'}") == 2
    assert "would both become" in capsys.readouterr().err


def test_without_opengl_all_but_the_contact_sheet_is_there(convert, monkeypatch):
    def refuse():
        raise NoOpenGLError("no off-screen OpenGL")

    monkeypatch.setattr(sheet, "choose_platform", refuse)
    code, said, folder = convert(box())
    assert code == 0 and said.err == "penspin: no contact sheet: no off-screen OpenGL\n"
    assert read_object(folder).mass > 0.0
    assert not (folder / "sheet.png").exists()


def test_a_library_that_is_not_installed_is_named_with_the_command(convert, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "coacd", None)
    code, said, _ = convert(box())
    assert code == 2 and "need coacd: pip install 'penspin-style[real2sim]'" in said.err


def test_a_decomposition_that_hangs_or_dies_costs_one_object(convert, monkeypatch):
    monkeypatch.setattr(decompose, "_PATIENCE", 0.01)
    code, said, folder = convert(BODIES["torus"])
    assert code == 3 and "takes more than 0.01 s" in said.err and not folder.exists()
    monkeypatch.setattr(decompose, "_PATIENCE", 60.0)
    monkeypatch.setattr(decompose, "_CHILD", ("false",))
    code, said, folder = convert(BODIES["torus"])
    assert code == 3 and "splitting it failed" in said.err and not folder.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"\x93NUMPY"])
def test_a_damaged_cache_is_computed_anew(content, tmp_path, monkeypatch):
    cube = [box().vertices, box().vertices + 0.1]
    monkeypatch.setattr(decompose, "_split", lambda mesh, options: cube)
    options = decompose.HullOptions()
    parts, cached = decompose.decompose(BODIES["torus"], options, tmp_path)
    assert len(parts) == 2 and not cached
    (file,) = tmp_path.iterdir()
    file.write_bytes(content)
    assert decompose.decompose(BODIES["torus"], options, tmp_path)[1] is False
    assert decompose.decompose(BODIES["torus"], options, tmp_path)[1] is True
    other = decompose.HullOptions(hulls=3)
    assert decompose.decompose(BODIES["torus"], other, tmp_path)[1] is False


def test_a_hull_of_few_vertices_lies_within_and_keeps_its_ends():
    whole = BODIES["sphere"].vertices
    few = decompose.convex(whole, 64)
    assert len(few.vertices) == 64
    assert solid(few).volume == pytest.approx(4 / 3 * np.pi * R**3, rel=0.15)
    np.testing.assert_allclose(np.ptp(few.vertices, axis=0), np.ptp(whole, axis=0))
    assert np.linalg.norm(few.vertices, axis=1).max() <= R * (1 + 1e-9)


def test_json_holds_findings_steps_and_what_was_made(tmp_path, capsys):
    file = pathlib.Path(tmp_path) / "mm.stl"
    file.write_bytes(stl(box().triangles[:, ::-1] * 1000.0))
    out = tmp_path / "objects"
    line = f"real2sim convert {file} --unit mm --mass 0.06 --out {out} --json"
    assert call(line) == 0
    said = json.loads(capsys.readouterr().out)["files"][str(file)]
    assert [finding["kind"] for finding in said["before"]["findings"]] == ["orientation"]
    assert said["steps"] == ["scaled by 0.001: it is in mm", "turned 12 of 12 faces outwards"]
    assert said["after"]["volume"] == pytest.approx(6e-5)
    assert said["object"]["size"] == pytest.approx([0.04, 0.03, 0.05])
    np.testing.assert_allclose(said["frame"]["rotation"], np.eye(3), atol=1e-9)
