"""Go from scans to a trained policy, phase by phase: run_pipeline.py 1|2|3A|3B|4|5|6|7.

    1    reconstruct an object from a cloud or mesh     penspin real2sim convert
    2    write a MuJoCo scene of it                     penspin real2sim scene
    3A   show the scripted expert pick and place        penspin demos, and a strip of images
    3B   reconstruct many objects, a scene of all       penspin real2sim convert, scene
    4    a camera: take its pose                        FOLDER/camera.json
    5    a detector: take the objects' poses            penspin real2sim scene --poses FOLDER
    6    check this machine, and measure its speed      penspin doctor, bench
    7    train a policy                                 train_real2sim_pickup.py

Each phase prints the commands that it amounts to; what else stands on the command line is handed to
the last of them. Without files, phases 1 and 3B take clouds of objects that come with the package.
"""

import argparse
import importlib.util
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence

import numpy as np

from penspin_style.__main__ import main as penspin
from penspin_style.data.trajectory import read_trajectory
from penspin_style.env.world import World
from penspin_style.meshes.folder import read_object
from penspin_style.render.gl_renderer import NoOpenGLError
from penspin_style.system.terminal import one_line
from penspin_style.train.compose_search import compose_demos
from penspin_style.viewer.trajectory import write_trajectory_strip
from tasks.real2sim.poses import CAMERA, POSES, PosesError, read_camera, read_poses
from tasks.real2sim.shipped import OBJECTS

TASK = "real2sim_pick_place"
OUT = pathlib.Path("outputs")
RECONSTRUCTED, CLOUDS = OUT / "reconstructed_objects", OUT / "point_clouds"
SCENE = OUT / "scenes" / "pipeline" / "scene.xml"
DEMOS = OUT / "demos" / TASK
SCANS = (".stl", ".obj", ".ply", ".npz", ".xyz")
DENSITY = 700  # kg/m^3, of wood
POINTS = 20_000
DELIVERS = {
    "4": f"a camera delivers its pose in the robot's base frame: FOLDER/{CAMERA} "
    '{"format": 1, "position": [3] m, "quaternion": [w, x, y, z]}, the optical frame (x right, '
    "y down, z forward)",
    "5": f"a detector delivers where objects stand: FOLDER/{POSES} "
    '{"format": 1, "frame": "base" or "camera", "poses": [{"object": name, "position": [3] m, '
    '"quaternion": [w, x, y, z]}, ...]}',
}
"""What there is no device for here, but a documented folder of poses."""


def reconstruct(names: Sequence[str], words: list[str]) -> int:
    """Reconstruct the files that are named, or clouds of shipped objects."""
    convert = ["real2sim", "convert", "--replace", "--out", str(RECONSTRUCTED)]
    if not {word.partition("=")[0] for word in words} & {"--density", "--mass"}:
        print(f"neither --density nor --mass is given: {DENSITY} kg/m^3")
        convert += ["--density", str(DENSITY)]
    if not any(word.lower().endswith(SCANS) for word in words):
        print(f"no file is given: clouds of {', '.join(names)}, which come with the package")
        words = [*(str(_cloud(name)) for name in names), *words]
    return _say(*convert, *words)


def scene(words: list[str]) -> int:
    """Write a scene of the reconstructed objects, or of the shipped ones."""
    return _say("real2sim", "scene", str(_objects()), "--out", str(SCENE), *words)


def many(words: list[str]) -> int:
    """Reconstruct several objects and write a scene of all."""
    return reconstruct(("box", "mug", "t_block"), words) or scene([])


def demonstrate(words: list[str]) -> int:
    """Record the scripted expert; write what it did as a strip of images."""
    code = _say("demos", TASK, "--count", "1", "--out", str(DEMOS), *words)
    return code or _strip(words)


def camera(words: list[str]) -> int:
    """Take a camera's pose from a folder."""
    if len(words) != 1:
        print(f"there is no camera here; {DELIVERS['4']}")
        return 0 if not words else 2
    pose = read_camera(words[0])
    print(f"camera at {pose.position} m, turned by {pose.quaternion} (w, x, y, z)")
    return 0


def detector(words: list[str]) -> int:
    """Take objects' poses from a folder and write the scene of them."""
    if not words:
        print(f"there is no detector here; {DELIVERS['5']}")
        return 0
    for name, pose in read_poses(words[0]).items():
        print(f"{name} at {pose.position} m")
    return scene(["--poses", *words])


def environment(words: list[str]) -> int:
    """Check this machine; measure the task's speed."""
    settings = [f"task={TASK}", "num_envs=64", *words]
    return _say("doctor") or _say("bench", "sim", "--rounds", "3", *settings)


def train(words: list[str]) -> int:
    """Train a policy."""
    file = pathlib.Path(__file__).with_name("train_real2sim_pickup.py")
    print(f"+ {shlex.join([f'scripts/{file.name}', *words])}", flush=True)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script.main(words)


PHASES: dict[str, Callable[[list[str]], int]] = {
    "1": lambda words: reconstruct(("mug",), words),
    "2": scene,
    "3A": demonstrate,
    "3B": many,
    "4": camera,
    "5": detector,
    "6": environment,
    "7": train,
}


def _say(*words: str) -> int:
    """Run a verb of `penspin`; return its exit code."""
    print(f"+ penspin {shlex.join(words)}", flush=True)
    return penspin(words)


def _objects() -> pathlib.Path:
    if any(RECONSTRUCTED.glob("*/object.json")):
        return RECONSTRUCTED
    print(f"{RECONSTRUCTED} holds no object: those that come with the package stand in")
    return OBJECTS


def _cloud(name: str) -> pathlib.Path:
    """Write points with normals on a shipped object, as a scan has them; return the file."""
    triangles = read_object(OBJECTS / name).visual_mesh.triangles
    across = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    areas = np.linalg.norm(across, axis=1)
    rng = np.random.default_rng(0)
    picked = rng.choice(len(areas), POINTS, p=areas / areas.sum())
    u, v = np.sqrt(rng.random(POINTS)), rng.random(POINTS)
    shares = np.stack((1 - u, u * (1 - v), u * v), axis=1)
    points = np.einsum("ij,ijk->ik", shares, triangles[picked])
    normals = across[picked] / areas[picked, None]
    CLOUDS.mkdir(parents=True, exist_ok=True)
    file = CLOUDS / f"{name}.npz"
    np.savez(file, points=points, normals=normals)
    return file


def _strip(words: list[str]) -> int:
    """Write the demonstration's strip; say so where this machine draws no images."""
    cfg, kind, _ = compose_demos(TASK, [word for word in words if "=" in word])
    world = World(kind(cfg.task), 1, seed=cfg.seed, engine=cfg.sim.engine)
    for file in sorted(DEMOS.glob("*.safetensors")):
        try:
            write_trajectory_strip(file.with_suffix(".png"), world, read_trajectory(file))
        except NoOpenGLError as error:
            print(f"run_pipeline.py: no strip: {one_line(error)}", file=sys.stderr)
            return 0
        print(file.with_suffix(".png"))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run one phase; return the exit code."""
    own = argparse.ArgumentParser(
        "run_pipeline.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    own.add_argument("phase", type=str.upper, choices=PHASES)
    args, words = own.parse_known_args(argv)
    try:
        return PHASES[args.phase](words)
    except PosesError as error:
        print(f"run_pipeline.py: {one_line(error)}", file=sys.stderr)
        return 3
    except (ValueError, OSError) as error:
        print(f"run_pipeline.py: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
