"""The Menagerie skin on the Panda, with a small synthetic Menagerie folder."""

import pathlib
import sys
import types

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from tasks.robots.panda.skin import SkinFormatError, SkinNotFoundError, attach_skin, find_skin

PANDA = pathlib.Path(__file__).parents[3] / "tasks" / "robots" / "panda" / "panda.xml"
MESH = mujoco.mjtGeom.mjGEOM_MESH
# body, parent, visual meshes; the fingers share theirs and link6 has two
PARTS = [("link0", None, ["link0_0"])]
PARTS += [(f"link{i}", f"link{i - 1}", [f"link{i}_0"]) for i in range(1, 6)]
PARTS += [("link6", "link5", ["link6_0", "link6_1"]), ("link7", "link6", ["link7_0"])]
PARTS += [("hand", "link7", ["hand_0"])]
PARTS += [("left_finger", "hand", ["finger_0"]), ("right_finger", "hand", ["finger_0"])]
TETRAHEDRON = """v 0 0 0
v 0.1 0 0
v 0 0.1 0
v 0 0 0.1
f 1 3 2
f 1 2 4
f 1 4 3
f 2 3 4
"""
PHYSICS = [
    "body_mass",
    "body_inertia",
    "body_ipos",
    "body_iquat",
    "body_pos",
    "body_quat",
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "dof_damping",
    "dof_armature",
    "jnt_range",
    "actuator_gainprm",
    "actuator_biasprm",
    "exclude_signature",
    "eq_data",
]
GEOM_PHYSICS = [
    "geom_type",
    "geom_contype",
    "geom_conaffinity",
    "geom_bodyid",
    "geom_size",
    "geom_pos",
    "geom_quat",
    "geom_friction",
    "geom_solref",
    "geom_solimp",
    "geom_condim",
    "geom_margin",
    "geom_group",
]


def body_xml(name):
    (meshes,) = [meshes for body, _, meshes in PARTS if body == name]
    geoms = "".join(
        f'<geom class="visual" mesh="{mesh}" material="paint" pos="0.01 0 0"/>' for mesh in meshes
    )
    children = "".join(body_xml(body) for body, parent, _ in PARTS if parent == name)
    # a mass and a hull far from the real ones: nothing but the visuals may come over
    hull = '<geom class="collision" mesh="hull"/>'
    inertial = '<inertial mass="9" pos="0 0 0" diaginertia="1 1 1"/>'
    return f'<body name="{name}">{inertial}{geoms}{hull}{children}</body>'


@pytest.fixture
def menagerie(tmp_path):
    """A checkout with one model, written like the real one."""
    folder = tmp_path / "checkout" / "franka_emika_panda"
    (folder / "assets").mkdir(parents=True)
    names = sorted({mesh for _, _, meshes in PARTS for mesh in meshes})
    for name in [*names, "hull"]:
        (folder / "assets" / f"{name}.obj").write_text(TETRAHEDRON)
    assets = "".join(f'<mesh file="{name}.obj"/>' for name in [*names, "hull"])
    (folder / "panda.xml").write_text(
        f"""<mujoco model="panda">
        <compiler angle="radian" meshdir="assets" autolimits="true"/>
        <default>
          <default class="visual">
            <geom type="mesh" contype="0" conaffinity="0" group="2"/>
          </default>
          <default class="collision"><geom type="mesh" group="3"/></default>
        </default>
        <asset><material name="paint" rgba="1 0.5 0 1"/>{assets}</asset>
        <worldbody>{body_xml("link0")}</worldbody></mujoco>"""
    )
    return folder


@pytest.fixture
def no_menagerie(monkeypatch):
    monkeypatch.delenv("MENAGERIE_ROOT", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", None)


def scene_spec(prefix=""):
    """The Panda with a box between its fingers and a floor."""
    if prefix:
        spec = mujoco.MjSpec()
        for name in ("timestep", "integrator", "iterations", "ls_iterations", "disableflags"):
            setattr(spec.option, name, getattr(mujoco.MjSpec.from_file(str(PANDA)).option, name))
        frame = spec.worldbody.add_frame()
        spec.attach(mujoco.MjSpec.from_file(str(PANDA)), prefix=prefix, frame=frame)
    else:
        spec = mujoco.MjSpec.from_file(str(PANDA))
    spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 0.05])
    box = spec.worldbody.add_body(name="box", pos=[0.6368, 0.0064, 0.1179])
    box.add_freejoint()
    box.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, size=[0.02, 0.02, 0.03], contype=2, mass=0.096, group=0
    )
    return spec


def rollout(model):
    """States of 50 steps from a grasp of the box, (50, nq + nv), and the number of contacts."""
    data = mujoco.MjData(model)
    data.qpos[:9] = [0.0481, 0.5604, -0.0417, -1.8459, 0.0342, 2.3654, 0.7852, 0.0198, 0.02]
    data.ctrl[:] = [0.0481, 0.5604, -0.0417, -1.8459, 0.0342, 2.3654, 0.7852, 0.0]
    states, contacts = [], 0
    for _ in range(50):
        mujoco.mj_step(model, data)
        contacts += data.ncon
        states.append(np.concatenate([data.qpos, data.qvel]))
    return np.array(states), contacts


def undrawn(model, name):
    """A geom array without the rows of what is only drawn."""
    return getattr(model, name)[model.geom_group != 2]


@pytest.mark.parametrize("prefix", ["", "arm/"])
def test_the_skin_leaves_the_physics_bit_identical(menagerie, prefix):
    plain = scene_spec(prefix).compile()
    spec = scene_spec(prefix)
    assert attach_skin(spec, menagerie, prefix=prefix) == 12
    skinned = spec.compile()
    assert (skinned.nq, skinned.nv, skinned.nu) == (plain.nq, plain.nv, plain.nu) == (16, 15, 8)
    for name in PHYSICS:
        np.testing.assert_array_equal(getattr(skinned, name), getattr(plain, name), err_msg=name)
    for name in GEOM_PHYSICS:
        np.testing.assert_array_equal(undrawn(skinned, name), undrawn(plain, name), err_msg=name)
    states, contacts = rollout(plain)
    skinned_states, skinned_contacts = rollout(skinned)
    assert contacts == skinned_contacts > 50
    assert np.abs(states[-1] - states[0]).max() > 1e-3
    np.testing.assert_array_equal(skinned_states, states)


def test_the_meshes_take_the_place_of_the_primitives_on_the_right_bodies(menagerie):
    spec = scene_spec()
    attach_skin(spec, menagerie)
    model = spec.compile()
    drawn = np.flatnonzero(model.geom_group == 2)
    worn = {name: [] for name, _, _ in PARTS}
    for index in drawn:
        assert model.geom_type[index] == MESH
        assert model.geom_contype[index] == model.geom_conaffinity[index] == 0
        worn[model.body(model.geom_bodyid[index]).name].append(
            model.mesh(model.geom_dataid[index]).name
        )
        material = model.mat_rgba[model.geom_matid[index]]
        np.testing.assert_allclose(material, [1.0, 0.5, 0.0, 1.0])
    assert worn == {name: [f"skin_{mesh}" for mesh in meshes] for name, _, meshes in PARTS}
    assert not np.any((model.geom_type == MESH) & (model.geom_group != 2))


def test_a_mesh_sits_where_the_source_model_has_it(menagerie):
    source = mujoco.MjModel.from_xml_path(str(menagerie / "panda.xml"))
    spec = scene_spec()
    attach_skin(spec, menagerie)
    model = spec.compile()
    for found in (source, model):
        index = np.flatnonzero(found.geom_bodyid == found.body("hand").id)
        (index,) = index[(found.geom_group[index] == 2)]
        start = found.mesh_vertadr[found.geom_dataid[index]]
        vertices = found.mesh_vert[start : start + 4]
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, found.geom_quat[index])
        points = vertices @ rotation.reshape(3, 3).T + found.geom_pos[index]
        corner = points[np.argmin(points.sum(axis=1))]
        np.testing.assert_allclose(corner, [0.01, 0.0, 0.0], atol=1e-7)


def test_the_environment_names_a_checkout(menagerie, monkeypatch):
    monkeypatch.setenv("MENAGERIE_ROOT", str(menagerie.parent))
    assert find_skin() == menagerie.resolve()
    assert find_skin(menagerie.parent) == menagerie.resolve()


@pytest.mark.parametrize("cached", [True, False])
def test_the_packages_cache_is_used_only_when_the_model_is_there(menagerie, monkeypatch, cached):
    asked = []
    cache = types.SimpleNamespace(
        model_path=lambda robot: menagerie, is_cached=lambda robot: asked.append(robot) or cached
    )
    package = types.SimpleNamespace(Cache=lambda: cache, get=lambda name: name)
    monkeypatch.delenv("MENAGERIE_ROOT", raising=False)
    monkeypatch.setitem(sys.modules, "mujoco_menagerie", package)
    if cached:
        assert find_skin() == menagerie.resolve()
    else:
        with pytest.raises(SkinNotFoundError, match="nothing downloaded yet"):
            find_skin()
    assert asked == ["franka_emika_panda"]


def test_without_a_skin_the_error_names_places_and_remedy(no_menagerie):
    with pytest.raises(SkinNotFoundError) as caught:
        attach_skin(scene_spec())
    for message in ("MENAGERIE_ROOT (not set)", "not installed", "pip install mujoco-menagerie"):
        assert message in str(caught.value)


def test_a_given_folder_without_a_model_is_an_error_even_if_another_exists(
    menagerie, monkeypatch, tmp_path
):
    monkeypatch.setenv("MENAGERIE_ROOT", str(menagerie.parent))
    with pytest.raises(SkinNotFoundError, match="empty"):
        attach_skin(scene_spec(), tmp_path / "empty")


def damage_mesh(folder):
    (folder / "assets" / "link3_0.obj").write_text("v 0 0 nonsense\nf 1 2")


def empty_mesh(folder):
    (folder / "assets" / "link3_0.obj").write_text("")


def lose_mesh(folder):
    (folder / "assets" / "link3_0.obj").unlink()


def lose_asset(folder):
    text = (folder / "panda.xml").read_text()
    (folder / "panda.xml").write_text(text.replace('<mesh file="link3_0.obj"/>', ""))


def cut_model(folder):
    text = (folder / "panda.xml").read_text()
    (folder / "panda.xml").write_text(text[: len(text) // 2])


def rename_body(folder):
    text = (folder / "panda.xml").read_text()
    (folder / "panda.xml").write_text(text.replace('name="link3"', 'name="link3x"'))


def undress_body(folder):
    text = (folder / "panda.xml").read_text()
    old = '<geom class="visual" mesh="link3_0" material="paint" pos="0.01 0 0"/>'
    assert old in text
    (folder / "panda.xml").write_text(text.replace(old, ""))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (damage_mesh, "damaged"),
        (empty_mesh, "damaged"),
        (lose_mesh, "link3_0.obj is missing"),
        (lose_asset, "link3_0"),
        (cut_model, "cannot read"),
        (rename_body, "lacks the skin's bodies link3x"),
        (undress_body, "no meshes for link3"),
    ],
)
def test_a_spoilt_folder_is_an_error_and_leaves_the_robot_as_it_was(menagerie, spoil, message):
    spoil(menagerie)
    spec = scene_spec()
    before = spec.to_xml()
    with pytest.raises(SkinFormatError, match=message):
        attach_skin(spec, menagerie)
    assert spec.to_xml() == before


def test_a_second_skin_is_refused(menagerie):
    spec = scene_spec()
    attach_skin(spec, menagerie)
    with pytest.raises(SkinFormatError, match="already"):
        attach_skin(spec, menagerie)


def test_a_task_may_wear_the_skin_and_moves_alike(menagerie, monkeypatch):
    monkeypatch.setenv("MENAGERIE_ROOT", str(menagerie.parent))
    task = load_task("panda_lift_cube")
    worn, bare = (Env(task(task.Config(skin=skin)), 3, seed=2) for skin in (True, False))
    assert worn.model.nmesh > 0 and bare.model.nmesh == 0
    actions = torch.rand(20, 3, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    for env in (worn, bare):
        for action in actions:
            env.step_and_maybe_reset(env.current().set("action", action))
    assert torch.equal(worn.sim.get_state(), bare.sim.get_state())


def test_a_task_without_the_meshes_says_where_it_looked(no_menagerie):
    task = load_task("panda_lift_cube")
    with pytest.raises(FileNotFoundError, match="MENAGERIE_ROOT"):
        Env(task(task.Config(skin=True)), 1)
