"""What the student of the vision task sees, and that nothing else tells it where the cube is."""

import itertools
import pathlib

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.gym_env import GymEnv
from penspin_style.env.task import Camera, Latency, load_task
from penspin_style.nets.policy import load_policy
from penspin_style.render.renderer import View, make_renderer
from penspin_style.train.evaluate import acting, evaluate
from tasks.panda.lift_cube import ABSENT, HALF, WORKSPACE
from tasks.panda.lift_cube_vision import IMAGES, PROPRIOCEPTION, Config

ROOT = pathlib.Path(__file__).parents[3]
X, Y, _ = WORKSPACE
LOOKS = {  # what is drawn at every reset, and how far from the model's own value it may lie
    "geom_rgba": None,
    "mat_rgba": None,
    "light_diffuse": None,
    "light_dir": 0.35,
    "cam_pos": 0.02,
    "cam_quat": 0.05,
    "cam_fovy": None,
}


def make(num_envs=4, *, seed=1, absent_object=0.0, **config):
    config.setdefault("latency", {})
    kind = load_task("panda_lift_cube_vision")
    return Env(kind(kind.Config(**config)), num_envs, seed=seed, absent_object=absent_object)


def wander(env, steps, seed=0):
    """Random actions that keep their direction for a while; what each step says."""
    rng, seen = torch.Generator().manual_seed(seed), []
    for t in range(steps):
        if t % 5 == 0:
            action = 2 * torch.rand(env.num_envs, 4, generator=rng) - 1
        td = env.current().set("action", action)
        seen.append(env.step_and_maybe_reset(td)[0]["next"])
    return torch.stack(seen)


def put_cube(env, positions, yaw=0.0, velocity=0.0):
    """Put the cubes there, (num_envs, 3) m, and nothing else anywhere."""
    at, dof = env.model.joint("box").qposadr[0], env.model.joint("box").dofadr[0]
    qpos = env.sim.data.qpos
    qpos[:, at : at + 3] = torch.as_tensor(positions, dtype=qpos.dtype)
    half = torch.tensor(0.5 * yaw)
    qpos[:, at + 3 : at + 7] = torch.stack((half.cos(), half * 0, half * 0, half.sin()))
    env.sim.data.qvel[:, dof : dof + 6] = velocity
    env.sim.forward()


def observed(env):
    """All inputs of the environments as they are now."""
    terms = {**env.task.observe(env.sim), **env.cameras.render()}
    everyone = torch.ones(env.num_envs, dtype=torch.bool)
    return {name: value.clone() for name, value in env.groups.observe(terms, everyone).items()}


def unlike(a, b):
    return {name for name in a if not torch.equal(a[name], b[name])}


def cube_pixels(env, size=32):
    """Pixels of the cube in each camera's image, camera -> (num_envs,)."""
    views = [
        View(camera, size, size, rgb=False, depth=False, segmentation=True)
        for camera in ("front", "wrist")
    ]
    renderer, cube = make_renderer(env.sim, views), env.model.geom("box").id

    def count():
        return {
            camera: (image["segmentation"] == cube).flatten(1).sum(dim=1)
            for camera, image in renderer.render().items()
        }

    return count


# What is observed.


def test_the_student_has_seven_numbers_and_four_images():
    env = make(2)
    assert env.groups.reads("student") == ("student", *IMAGES)
    inputs = {i.name: i for i in env.inputs}
    numbers = inputs["student"].features
    assert [(f.name, f.size) for f in numbers] == [("tcp_pos", 3), ("tcp_vel", 3), ("gripper", 1)]
    assert {f.name for f in numbers} == set(PROPRIOCEPTION)
    assert {name: inputs[name].tensor for name in IMAGES} == {
        "front_rgb": ("uint8", (32, 32, 3)),
        "front_depth": ("float32", (32, 32)),
        "wrist_rgb": ("uint8", (32, 32, 3)),
        "wrist_depth": ("float32", (32, 32)),
    }
    assert set(inputs) == {"teacher", "student", *IMAGES}


def test_the_teacher_reads_what_it_read_without_cameras():
    kind = load_task("panda_lift_cube")
    plain = Env(kind(kind.Config()), 1)
    assert make(1).inputs[0] == plain.inputs[0]
    assert [a.name for a in make(1).task.actions] == [a.name for a in plain.task.actions]


def test_only_the_student_is_late_as_published():
    assert Config().latency == {"student": Latency()}
    assert Config().latency["student"].shared and Config().latency["student"].every_step


def test_the_resolution_is_a_parameter():
    cameras = {"front": Camera(48, 64), "wrist": Camera(16, 24)}
    td = make(1, cameras=cameras).current()
    assert td["front_rgb"].shape == (1, 48, 64, 3) and td["wrist_depth"].shape == (1, 16, 24)


def test_the_shipped_teacher_lifts_the_cube_here_too():
    observation = {"teacher": Config().observation["teacher"]}  # nothing is rendered
    env = make(16, seed=3, observation=observation)
    policy, _ = load_policy(ROOT / "outputs" / "pretrained" / "panda_lift_cube" / "policy")
    assert evaluate(env, acting(policy), seed=3).success_rate >= 15 / 16


# Where the cube is, only the images say.


def test_nothing_that_the_student_has_tells_where_a_cube_is_that_no_camera_sees():
    env = make(4)
    wander(env, 12)
    count, places = cube_pixels(env), ((-0.9, 0.0, 0.02), (-1.2, 0.4, 0.3), (-0.7, -0.5, 0.05))
    seen = []
    for k, place in enumerate(places):
        put_cube(env, [place] * 4, yaw=0.7 * k, velocity=0.3 * k)
        assert not any(pixels.any() for pixels in count().values())
        seen.append(observed(env))
    for other in seen[1:]:
        assert unlike(seen[0], other) == {"teacher"}


def test_of_a_cube_in_sight_the_images_tell_and_the_numbers_do_not():
    env = make(4)
    wander(env, 12)
    count = cube_pixels(env)
    seen, inside = [], torch.tensor([[0.35, -0.1], [0.45, 0.1], [0.4, 0.2], [0.5, -0.2]])
    for shift in (0.0, 0.05):
        place = torch.cat((inside + shift, torch.full((4, 1), HALF)), dim=1)
        put_cube(env, place)
        assert (count()["front"] >= 1).all()
        seen.append(observed(env))
    changed = unlike(*seen)
    assert {"teacher", "front_rgb", "front_depth"} <= changed
    assert "student" not in changed
    for name in ("front_rgb", "front_depth"):
        assert (seen[0][name] != seen[1][name]).flatten(1).any(dim=1).all()


def test_the_front_camera_sees_the_cube_wherever_an_episode_may_begin():
    env = make(64)
    count = cube_pixels(env)
    fewest = []
    for _ in range(4):
        env.reset()
        at = env.task.box
        inside = (at[:, 0] >= X[0]) & (at[:, 0] <= X[1]) & (at[:, 1].abs() <= Y[1])
        assert inside.all()
        fewest.append(count()["front"].min().item())
    assert min(fewest) >= 1
    grid = torch.cartesian_prod(torch.linspace(*X, 8), torch.linspace(*Y, 8))
    put_cube(env, torch.cat((grid, torch.full((64, 1), HALF)), dim=1))
    assert count()["front"].min() >= 1
    depth = env.cameras.render()["front_depth"]
    segmentation = make_renderer(env.sim, [View("front", rgb=False, segmentation=True)])
    on_cube = segmentation.render()["front"]["segmentation"] == env.model.geom("box").id
    assert depth[on_cube].min() > 0.6 and depth[on_cube].max() < 1.6  # what the student counts


def test_the_wrist_camera_sees_a_cube_between_the_fingers():
    env = make(8)
    count = cube_pixels(env)
    for height in (0.0, -0.1):
        below = env.task.arm.position + torch.tensor([0.0, 0.0, height])
        put_cube(env, below)
        assert (count()["wrist"] >= 4).all()


# An absent cube.


def test_no_draw_of_the_cameras_shows_an_absent_cube():
    env = make(64, absent_object=0.9)
    count = cube_pixels(env, 48)
    for _ in range(3):
        absent = env.reset()["is_absent"][:, 0]
        pixels = count()
        assert not (pixels["front"] + pixels["wrist"])[absent].any()
        assert 45 <= absent.sum() < 64 and (pixels["front"][~absent] > 0).all()


def test_an_absent_cube_is_seen_by_no_camera_and_ends_no_episode():
    env = make(8, absent_object=0.5, episode_length=30)
    count = cube_pixels(env, 64)
    absent = env.current()["is_absent"][:, 0]
    assert 0 < absent.sum() < 8
    at = env.task.box
    assert torch.allclose(at[absent], torch.tensor(ABSENT), atol=1e-3)
    shown = 0
    for k in range(29):
        seen = wander(env, 1, seed=k)
        pixels = sum(count().values())
        assert not pixels[absent].any()
        assert not seen["terminated"][0, absent].any()
        shown += (pixels[~absent] > 0).sum().item()
    assert shown > 0
    assert (env.step_count[absent] == 29).all()


def test_a_cube_as_far_away_that_was_not_removed_ends_its_episode():
    env = make(3)
    put_cube(env, [ABSENT, ABSENT, (0.4, 0.0, HALF)])
    env.task.memory["is_absent"][0] = True
    assert env.task.terminated(env.sim).tolist() == [False, True, False]


def test_the_next_episode_shows_the_cube_again():
    env = make(4, episode_length=2)
    env.task.remove_object(env.sim, torch.tensor([True, True, False, False]))
    wander(env, 2)
    assert not env.task.memory["is_absent"].any()
    assert (env.task.box[:, 0] >= X[0]).all()


# How everything looks.


def looks(env):
    return {name: env.sim.params[name].clone() for name in LOOKS}


def alike(values):
    """Whether any two environments have the same (num_envs, ...)."""
    rows = values.flatten(1)
    return any(
        torch.equal(rows[i], rows[j]) for i, j in itertools.combinations(range(len(rows)), 2)
    )


def test_every_environment_and_every_episode_looks_different():
    """Upstream drew colours and cameras once per environment for the whole run."""
    env = make(6, episode_length=2)
    first, poses = looks(env), env.sim.data.qpos.clone()
    wander(env, 2)
    second, later = looks(env), env.sim.data.qpos.clone()
    for name in LOOKS:
        assert not alike(first[name]) and not alike(second[name]), name
        assert (first[name] != second[name]).flatten(1).any(dim=1).all(), name
    at = env.model.joint("box").qposadr[0]
    for part in (slice(0, 7), slice(at, at + 2)):  # arm and cube begin elsewhere too
        assert not alike(poses[:, part]) and not alike(later[:, part])
        assert (poses[:, part] != later[:, part]).all()


def test_within_an_episode_nothing_changes_its_looks_and_a_restart_only_its_own():
    env = make(4, episode_length=50)
    before = looks(env)
    wander(env, 5)
    assert unlike(before, looks(env)) == set()
    mask = torch.tensor([True, False, False, True])
    env.reset(env.current().set("_reset", mask[:, None]))
    for name, value in looks(env).items():
        same = (value == before[name]).flatten(1).all(dim=1)
        assert torch.equal(same, ~mask), name


def test_looks_stay_within_their_ranges():
    env = make(200, observation={"teacher": Config().observation["teacher"]})
    model, params = env.model, env.sim.params
    box, floor = model.geom("box").id, model.material("floor").id
    skins = [i for i in range(model.nmat) if model.material(i).name.startswith("panda_")]
    red, rest = params.geom_rgba[:, box, 0], params.geom_rgba[:, box, 1:]
    assert red.min() >= 0.5 and red.max() <= 1.0 and red.std() > 0.1
    assert (rest == torch.from_numpy(model.geom_rgba[box, 1:])).all()
    ground = params.mat_rgba[:, floor]
    assert ground[:, :3].min() >= 0.4 and ground[:, :3].max() <= 1.0
    assert (ground[:, 3] == 1.0).all()
    ratio = params.mat_rgba[:, skins, :3] / torch.from_numpy(model.mat_rgba[skins, :3])
    ratio = ratio[torch.isfinite(ratio)]
    assert ratio.min() >= 0.7 - 1e-6 and ratio.max() <= 1.1 + 1e-6 and ratio.std() > 0.05
    light = params.light_diffuse[:, 0]
    assert light.min() >= 0.3 and light.max() <= 0.9 and (light == light[:, :1]).all()
    nominal = torch.from_numpy(model.light_dir[0]).double()
    angle = torch.acos((params.light_dir[:, 0].double() @ nominal / nominal.norm()).clamp(max=1.0))
    assert 0.2 < angle.max() <= 0.35 + 1e-3
    for camera, most in (("front", 0.02), ("wrist", 0.005)):
        i = model.camera(camera).id
        moved = (params.cam_pos[:, i] - torch.from_numpy(model.cam_pos[i])).abs()
        assert 0.9 * most < moved.max() <= most + 1e-6
        turned = (params.cam_quat[:, i] * torch.from_numpy(model.cam_quat[i])).sum(dim=1).abs()
        assert 0.04 < 2 * torch.acos(turned.clamp(max=1.0)).max() <= 0.05 + 1e-3
        zoom = params.cam_fovy[:, i] / model.cam_fovy[i]
        assert 0.96 <= zoom.min() < 0.97 and 1.03 < zoom.max() <= 1.04
    view = model.camera("view").id  # that of the videos
    assert (params.cam_pos[:, view] == torch.from_numpy(model.cam_pos[view])).all()


@pytest.mark.parametrize("visual", [True, False])
def test_images_of_one_state_differ_only_if_looks_are_randomised(visual):
    env = make(4, visual_randomization=visual)
    env.sim.data.qpos[:] = env.sim.data.qpos[:1].clone()
    env.sim.forward()
    images = env.cameras.render()
    for name in IMAGES:
        rows = images[name]
        if visual:
            assert not alike(rows), name
        else:
            assert all(torch.equal(row, rows[0]) for row in rows), name
    assert {name for name in LOOKS if name in env.sim.params} == (set(LOOKS) if visual else set())
    assert "body_mass" in env.sim.params  # physics still differs


def test_without_any_randomisation_nothing_is_drawn():
    env = make(3, randomize=False)
    assert not set(dir(env.sim.params))


def test_gymnasium_refuses_a_group_with_images_and_names_the_way_out():
    with pytest.raises(ValueError, match=r"group 'student' has images.*penspin_style\.env\.env"):
        GymEnv("panda_lift_cube_vision", group="student")
    with pytest.raises(ValueError, match=r"no observation group 'front_rgb'; it has \['teacher'"):
        GymEnv("panda_lift_cube_vision", group="front_rgb")
