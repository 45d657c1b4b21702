"""`penspin real2sim`: check, repair and convert scanned objects for MuJoCo; scenes of them.

The parser's part answers without importing anything heavy. Exit codes: 0 without faults, 2 the
command line is invalid or a file unreadable, 3 a file has faults.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penspin_style.cli import scene
from penspin_style.system.arguments import above_zero, add_json, positive
from penspin_style.system.terminal import aligned, one_line, print_json, printable

if TYPE_CHECKING:
    from penspin_style.meshes.convert import Converted
    from penspin_style.meshes.folder import Object
    from penspin_style.meshes.repair import Repaired

_OK, _USAGE, _DATA = 0, 2, 3
_MAX_HULLS = 64  # that a folder may have
_UNITS = ("m", "cm", "mm", "inch")


class _UsageError(ValueError):
    """The command line is invalid."""


def add_verbs(verbs: Any) -> None:
    """Add `real2sim` and its verbs; verbs: what `ArgumentParser.add_subparsers` returned."""
    summary = "Check, repair and convert scans (STL, OBJ, PLY, clouds); make scenes of objects."
    real2sim = verbs.add_parser("real2sim", help=summary, description=summary)
    kinds = real2sim.add_subparsers(dest="kind", required=True, metavar="WHAT")

    def verb(name: str, run: Callable[[Any], int], summary: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=summary, description=summary)
        add_json(sub)
        sub.set_defaults(run=run)
        sub.add_argument("files", nargs="+", metavar="FILE", help=".stl .obj .ply .npz .xyz")
        sub.add_argument("--unit", choices=_UNITS, help="of the files' numbers; default m, checked")
        sub.add_argument(
            "--max-hole",
            type=_share,
            default=0.05,
            metavar="SHARE",
            help="of the surface that may be made up to close it; default 0.05",
        )
        return sub

    verb("check", _check, "Say what MuJoCo would refuse, and what it takes without a word.")
    repair = verb("repair", _repair, "Write repaired copies as .obj in metres, each step said.")
    _add_output(repair, "outputs/repaired", "folder of the copies")
    convert = verb("convert", _convert, "Make objects: exact mass and inertia, convex parts.")
    _add_output(convert, "outputs/objects", "folder of the objects, a folder each")
    weight = convert.add_mutually_exclusive_group(required=True)
    weight.add_argument("--density", type=above_zero(3e4), metavar="KG/M3", help="1000 is water")
    weight.add_argument("--mass", type=above_zero(1e3), metavar="KG", help="of each object")
    convert.add_argument("--hulls", type=_hulls, default=8, help="convex parts at most; default 8")
    convert.add_argument(
        "--faces", type=positive, default=5000, help="of what is seen; default 5000"
    )
    convert.add_argument("--licence", default="not stated", help="kept with the object")
    convert.add_argument("--source", default="", help="kept with the object; default the file")
    convert.add_argument("--cache", metavar="DIR", help="of convex parts; default ~/.cache")
    scene.add_verb(kinds)


def _add_output(sub: argparse.ArgumentParser, default: str, what: str) -> None:
    sub.add_argument("--out", default=default, metavar="DIR", help=f"{what}; default {default}")
    sub.add_argument("--keep", choices=("largest",), help="of separate bodies; default none")
    sub.add_argument("--replace", action="store_true", help="write over what an earlier run wrote")


def _hulls(text: str) -> int:
    if (value := positive(text)) > _MAX_HULLS:
        raise argparse.ArgumentTypeError(f"{text} is more than {_MAX_HULLS}")
    return value


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share of 0 to 1")
    return value


# The verbs.


def _check(args: argparse.Namespace) -> int:
    """Say what is wrong with each file."""
    return _each(args, _checked)


def _checked(file: pathlib.Path, repaired: "Repaired", args: argparse.Namespace) -> dict[str, Any]:
    del args
    checked = repaired.before
    return {"findings": [finding.facts() for finding in checked.findings], **checked.facts}


def _repair(args: argparse.Namespace) -> int:
    """Write repaired copies."""
    _targets(args, ".obj")
    return _each(args, _write_repaired)


def _write_repaired(
    file: pathlib.Path, repaired: "Repaired", args: argparse.Namespace
) -> dict[str, Any]:
    from penspin_style import storage
    from penspin_style.meshes.wavefront import format_obj

    if repaired.left:
        return repaired.facts()
    target = _target(file, args, ".obj")
    storage.make_folder(target.absolute().parent)
    storage.write_file(target, format_obj(repaired.after.mesh))
    return {**repaired.facts(), "out": str(target)}


def _convert(args: argparse.Namespace) -> int:
    """Write a folder for each object."""
    _targets(args, "")
    return _each(args, _write_object)


def _write_object(
    file: pathlib.Path, repaired: "Repaired", args: argparse.Namespace
) -> dict[str, Any]:
    from penspin_style.meshes.convert import BodyOptions, convert
    from penspin_style.meshes.decompose import HullOptions, cache_folder

    if repaired.left:
        return repaired.facts()
    body = BodyOptions(
        density=args.density,
        mass=args.mass,
        faces=args.faces,
        licence=args.licence,
        source=args.source,
    )
    made = convert(
        repaired,
        file,
        _target(file, args, ""),
        body=body,
        hulls=HullOptions(hulls=args.hulls),
        cache=pathlib.Path(args.cache) if args.cache else cache_folder(),
        draw=_sheet,
        replace=args.replace,
    )
    return {**made.report, "out": str(made.object.folder), "object": _object_facts(made)}


def _object_facts(made: "Converted") -> dict[str, Any]:
    found = made.object
    return {
        "name": found.name,
        "mass": found.mass,
        "inertia": list(found.inertia),
        "size": list(found.size),
        "volume": found.volume,
        "hulls": len(found.collision),
    }


def _sheet(found: "Object") -> bytes | None:
    """Return a contact sheet, or None and say why this machine draws none."""
    from penspin_style.render.gl_renderer import NoOpenGLError
    from penspin_style.viewer.sheet import object_sheet

    try:
        return object_sheet(found)
    except NoOpenGLError as error:
        print(f"penspin: no contact sheet: {one_line(error)}", file=sys.stderr)
        return None


# What they share.


def _each(
    args: argparse.Namespace,
    work: Callable[[pathlib.Path, "Repaired", argparse.Namespace], dict[str, Any]],
) -> int:
    """Read each file, do the work, say what came of it; return the exit code."""
    from penspin_style.meshes import libraries
    from penspin_style.meshes.convert import ConversionError
    from penspin_style.meshes.files import read_scan
    from penspin_style.meshes.repair import RepairOptions, inspect_scan, repair_scan

    libraries.require()
    options = RepairOptions(args.unit, args.max_hole, getattr(args, "keep", None))
    inspect = inspect_scan if args.kind == "check" else repair_scan
    reports: dict[str, dict[str, Any]] = {}
    unreadable = False
    for name in dict.fromkeys(args.files):
        file = pathlib.Path(name)
        try:
            repaired = inspect(read_scan(file), options)
            if not args.json:
                _say(file, repaired, kind=args.kind)
            reports[name] = work(file, repaired, args)
            reports[name]["faults"] = len(repaired.left)
        except (ValueError, OSError) as error:
            unreadable |= not isinstance(error, ConversionError)
            reports[name] = {"error": one_line(error), "faults": 1}
            text = str(error) if str(file) in str(error) else f"{file}: {error}"
            print(f"penspin: {one_line(text)}", file=sys.stderr)
    if args.json:
        print_json({"files": reports})
    else:
        _print_table(reports)
    if unreadable:
        return _USAGE
    return _DATA if any(report["faults"] for report in reports.values()) else _OK


def _say(file: pathlib.Path, repaired: "Repaired", *, kind: str) -> None:
    for finding in repaired.before.findings:
        print(printable(f"{file}: {finding.line()}"))
    if kind == "check":
        return
    for step in repaired.steps:
        print(printable(f"{file}: {step}"))
    if repaired.left:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in repaired.left))
        print(printable(f"{file}: refused, nothing is written: {kinds}"))


def _print_table(reports: dict[str, dict[str, Any]]) -> None:
    rows = [("file", "faces", "size, mm", "volume, cm3", "closed", "faults", "mass, g", "hulls")]
    rows += [_row(name, report) for name, report in reports.items()]
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    print("\n".join(aligned(list(zip(*columns, strict=True)))))


def _row(name: str, report: dict[str, Any]) -> tuple[str, ...]:
    facts = report.get("after", report)
    made = report.get("object", {})
    closed = {True: "yes", False: "no", None: ""}[facts.get("closed")]
    return (
        printable(pathlib.Path(name).name),
        str(facts.get("faces", "")),
        " x ".join(f"{1000 * x:.4g}" for x in facts.get("size", ())),
        f"{1e6 * facts['volume']:.4g}" if "volume" in facts else "",
        closed,
        "unread" if "error" in report else str(report["faults"]),
        f"{1000 * made['mass']:.4g}" if made else "",
        str(made["hulls"]) if made else "",
    )


def _targets(args: argparse.Namespace, suffix: str) -> None:
    """Refuse targets that two files share, that are inputs, or that are there already."""
    inputs = {pathlib.Path(name).resolve() for name in args.files}
    seen: dict[pathlib.Path, str] = {}
    for name in dict.fromkeys(args.files):
        target = _target(pathlib.Path(name), args, suffix)
        if target in seen:
            raise _UsageError(f"{seen[target]} and {name} would both become {target}")
        seen[target] = name
        if target.resolve() in inputs:
            raise _UsageError(f"{target} is an input, which is never written over; choose --out")
        if target.exists() and not args.replace:
            raise _UsageError(f"{target} exists already; choose another --out, or --replace it")


def _target(file: pathlib.Path, args: argparse.Namespace, suffix: str) -> pathlib.Path:
    from penspin_style.meshes.convert import object_name

    return pathlib.Path(args.out) / f"{object_name(file)}{suffix}"
