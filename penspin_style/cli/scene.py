"""`penspin real2sim scene`: a MuJoCo scene of a Panda, a table and objects at rest."""

import argparse
import pathlib
import sys
from typing import Any

from penspin_style.system.arguments import add_json
from penspin_style.system.terminal import one_line, print_json, printable

_SCENES = pathlib.Path("outputs/scenes")
_OK, _USAGE, _DATA = 0, 2, 3


def add_verb(kinds: Any) -> None:
    """Add `scene`; kinds: what `add_subparsers` of the verb `real2sim` returned."""
    summary = "Write a MuJoCo scene of a Panda, a table and objects at rest."
    sub = kinds.add_parser("scene", help=summary, description=summary)
    add_json(sub)
    sub.add_argument("folder", metavar="FOLDER", help="of objects, as penspin real2sim convert's")
    sub.add_argument(
        "--out", metavar="SCENE.xml", help=f"default {_SCENES}/FOLDER/scene.xml; has its own folder"
    )
    sub.add_argument(
        "--poses", metavar="POSES", help="where they stand: a folder of poses, or its poses.json"
    )
    sub.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write a scene; print where its objects rest."""
    from penspin_style.meshes.folder import ObjectError
    from penspin_style.train.scenes import find_poses, find_scenes

    scenes, poses = find_scenes(), find_poses()
    folder = pathlib.Path(args.folder)
    default = _SCENES / folder.absolute().name / "scene.xml"
    out = pathlib.Path(args.out) if args.out else default
    if out.suffix != ".xml":
        print(f"penspin: --out {one_line(out)}: the file must end in .xml", file=sys.stderr)
        return _USAGE
    try:
        objects, left = scenes.find_objects(folder)
        given = poses.read_poses(args.poses) if args.poses else None
        scene = scenes.write_scene(out, objects, given)
    except (ObjectError, scenes.SceneError, poses.PosesError) as error:
        print(f"penspin: {one_line(error)}", file=sys.stderr)
        return _DATA
    if left:
        print(f"penspin: left out, no objects: {printable(', '.join(left))}", file=sys.stderr)
    if args.json:
        rows = {
            name: {"position": pose.position, "quaternion": pose.quaternion}
            | {"moved": scene.moved[name], "drift": scene.drift[name]}
            for name, pose in scene.poses.items()
        }
        print_json({"scene": str(out), "objects": rows})
        return _OK
    width = max(map(len, scene.poses))
    for name, pose in scene.poses.items():
        at = " ".join(f"{x:7.4f}" for x in pose.position)
        moved = f"settled by {1000 * scene.moved[name]:6.2f} mm"
        print(f"{name:{width}}  at {at} m  {moved}, then rests")
    print(f"{out}: python -m mujoco.viewer --mjcf={out}")
    return _OK
