"""`penspin data`: check, list, view, pack, unpack, rescue and convert what was recorded.

The parser's part answers without importing anything heavy; each verb is a function below that
imports what it needs. Exit codes: 0 done, 2 the command line is invalid, 3 the data cannot be
trusted, or the disk lost it.
"""

import argparse
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from penspin_style import storage
from penspin_style.system.arguments import add_json, port
from penspin_style.system.terminal import one_line, print_json, printable

if TYPE_CHECKING:
    from penspin_style.data.check import CheckResult, Facts
    from penspin_style.data.episodes.episode import Episode
    from penspin_style.data.formats.penspin import Hand
    from penspin_style.features import PolicyCard

_OK, _DATA = 0, 3
_MAX_CARD = 2**20  # bytes
_RATE_MARGIN = 0.01
"""Share by which a rate that is given may differ from the file's before it is said."""
_MANY = 20
"""Files beyond which those without a fault are counted, not listed."""


class _UsageError(ValueError):
    """The command line is invalid."""


def add_verbs(verbs: Any) -> None:
    """Add `data` and its verbs; verbs: what `ArgumentParser.add_subparsers` returned."""
    summary = "Check, list, view, pack, unpack, rescue and convert recorded episodes."
    data = verbs.add_parser("data", help=summary, description=summary)
    kinds = data.add_subparsers(dest="kind", required=True, metavar="WHAT")

    def verb(name: str, run: Callable[[Any], int], summary: str) -> argparse.ArgumentParser:
        sub = kinds.add_parser(name, help=summary, description=summary)
        add_json(sub)
        sub.set_defaults(run=_guarded(run))
        return sub

    several: dict[str, Any] = {
        "nargs": "+",
        "metavar": "PATH",
        "help": "files, or folders of .h5 files",
    }
    card_help = "an .onnx file, a run folder or a policy folder: its inputs and limits hold"

    verify = verb("verify", _verify, "Check every value of episodes and of PenSpin's files.")
    verify.add_argument("paths", **several)
    verify.add_argument("--card", metavar="POLICY", help=card_help)

    info = verb("info", _info, "Say what files hold, without reading their values.")
    info.add_argument("paths", **several)

    view = verb("view", _view, "Show episodes on a page: images, joints and actions to scrub.")
    view.add_argument("paths", **several)
    view.add_argument("--host", default="127.0.0.1", help="address to listen on")
    view.add_argument("--port", type=port, default=8080, help="first one to try")

    pack = verb("pack", _pack, "Write a folder's successful episodes as PenSpin's real_data.h5.")
    pack.add_argument("folder", help="folder of episodes")
    pack.add_argument("out", metavar="OUT.h5", help="must not exist")
    pack.add_argument("--full", action="store_true", help="with images, depth and point clouds")
    pack.add_argument("--all", action="store_true", help="with failures and of unknown success")

    unpack = verb("unpack", _unpack, "Write PenSpin's real_data.h5 as a folder of episodes.")
    unpack.add_argument("file", metavar="REAL.h5", help="a file of PenSpin's")
    unpack.add_argument("folder", help="for the episodes")
    unpack.add_argument("--card", metavar="POLICY", help=card_help)
    unpack.add_argument("--rate", type=_rate, metavar="HZ", help="default: the file's, else 18")
    unpack.add_argument("--hand", default="allegro", help="folder of tasks/robots; default allegro")

    repair = verb("repair", _repair, "Rescue what is whole of a folder or file into a new folder.")
    repair.add_argument("source", help="a folder of episodes, or a file of PenSpin's; stays as is")
    repair.add_argument("folder", help="must not exist, or be empty")
    repair.add_argument("--hand", default="allegro", help="folder of tasks/robots; default allegro")

    convert = verb("convert", _convert, "Write a folder's episodes in another project's format.")
    convert.add_argument("folder", help="folder of episodes")
    convert.add_argument("out", help="a folder for lerobot, a file for robomimic")
    convert.add_argument("--to", required=True, choices=("lerobot", "robomimic"), help="format")
    convert.add_argument("--fps", type=_rate, metavar="HZ", help="lerobot; default: the episodes'")
    convert.add_argument("--successful", action="store_true", help="leave the others out")


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 1e4:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate of 0.1 to 10000 Hz")
    return value


def _guarded(run: Callable[[Any], int]) -> Callable[[Any], int]:
    """Return a verb that says in one line which data it cannot trust; exit code 3."""

    def running(args: argparse.Namespace) -> int:
        from penspin_style.data.episodes.episode import EpisodeError, RecorderError

        try:
            return run(args)
        except (EpisodeError, RecorderError) as error:
            print(f"penspin: {one_line(error)}", file=sys.stderr)
            return _DATA

    return running


# Arguments.


def _files(names: Sequence[str]) -> list[pathlib.Path]:
    """Return the files that paths mean, a folder's in the order of their numbers."""
    from penspin_style.data.episodes.episode import episodes

    files: list[pathlib.Path] = []
    for name in names:
        path = pathlib.Path(name)
        if path.is_dir():
            found = episodes(path)
            if not found:
                raise _UsageError(f"{path} holds no .h5 files")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise _UsageError(f"{path} does not exist")
    return list(dict.fromkeys(files))


def _opened(folder: str, *, successful: bool) -> tuple[list["Episode"], int]:
    """Return a folder's episodes and how many of them were left out."""
    from penspin_style.data.episodes.episode import Episode

    if not pathlib.Path(folder).is_dir():
        raise _UsageError(f"{folder} is not a folder")
    found = [Episode.open(path) for path in _files([folder])]
    kept = [episode for episode in found if episode.success or not successful]
    if not kept:
        raise _UsageError(f"none of the {len(found)} episodes of {folder} was a success")
    return kept, len(found) - len(kept)


def _card(name: str | None) -> "PolicyCard | None":
    """Return the card of an exported policy, a run folder or a policy folder."""
    from penspin_style.features import PolicyCard

    if name is None:
        return None
    path = pathlib.Path(name)
    if path.suffix == ".onnx":
        from penspin_style.deploy.bundle import Bundle

        return Bundle.load(path).card
    for file in (path, path / "card.json", path / "policy" / "card.json"):
        if file.is_file() and file.suffix == ".json":
            return PolicyCard.from_json(storage.read_file(file, _MAX_CARD).decode())
    raise _UsageError(f"--card {path}: is no .onnx file and holds no card.json")


def _hand(name: str) -> "Hand":
    """Return what `tasks/robots` describes of a hand."""
    from penspin_style.data.formats.penspin import Hand
    from penspin_style.train.find_task import find_robot

    try:
        return Hand.of(find_robot(name))
    except ValueError as error:
        raise _UsageError(f"--hand {name}: {error}") from error


def _new_folder(name: str) -> pathlib.Path:
    folder = pathlib.Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise _UsageError(f"{folder} is not an empty folder; choose another for the episodes")
    return folder


# The verbs.


def _verify(args: argparse.Namespace) -> int:
    from penspin_style.data.check import verify

    files = _files(args.paths)
    results = []
    for result in verify(files, card=_card(args.card)):
        results.append(result)
        if not args.json:
            _show(result, brief=len(files) > _MANY)
    bad = [v for v in results if v.fault is not None]
    left = _leftovers(args.paths)
    if args.json:
        faults = [_fault(v) for v in bad]
        facts = [dataclasses.asdict(v.facts) for v in results if v.facts is not None]
        print_json({"files": facts, "faults": faults, "unfinished": left})
    else:
        for path, state in left.items():
            print(printable(f"{path}: {state}"))
        steps = sum(v.facts.steps for v in results if v.facts is not None)
        print(f"{len(files) - len(bad)} of {len(files)} files can be trusted, {steps} steps")
    return _DATA if bad else _OK


def _show(result: "CheckResult", *, brief: bool) -> None:
    facts = result.facts
    if facts is None:
        print(f"BAD   {printable(str(result.fault))}", file=sys.stderr)
    elif not brief or facts.notes:
        print(f"good  {_line(facts)}")


def _line(facts: "Facts") -> str:
    success = {True: "success", False: "failure", None: "success unknown"}[facts.success]
    parts = [f"{facts.steps} steps", f"{facts.seconds:.4g} s"]
    if facts.kind == "episode":
        parts += [facts.task, facts.source, success]
    else:
        parts.insert(0, f"{facts.kind} of {facts.episodes}")
    return printable(f"{facts.file}: " + "; ".join([", ".join(parts), *facts.notes]))


def _fault(result: "CheckResult") -> dict[str, Any]:
    fault = result.fault
    assert fault is not None
    return {"file": str(result.file), "key": fault.key, "row": fault.row, "what": fault.what}


def _leftovers(names: Sequence[str]) -> dict[str, str]:
    """Return the hidden files of recorders in the folders, and what has become of these."""
    from penspin_style.data.episodes.atomic_file import is_alive, stages

    found = {}
    for folder in (path for name in names if (path := pathlib.Path(name)).is_dir()):
        for stage in stages(folder):
            state = "is being recorded" if is_alive(stage) else "was cut off; the next recorder"
            found[str(stage)] = state if state.startswith("is") else f"{state} removes it"
    return found


def _info(args: argparse.Namespace) -> int:
    from penspin_style.data.check import info

    facts = [info(path) for path in _files(args.paths)]
    if args.json:
        print_json({"files": [dataclasses.asdict(f) for f in facts]})
        return _OK
    for i, fact in enumerate(facts):
        print(_line(fact))
        if i == 0 or fact.columns != facts[i - 1].columns:
            width = max(map(len, fact.columns), default=0)
            for name, what in fact.columns.items():
                print(f"    {name:{width}}  {what}")
    steps, seconds = sum(f.steps for f in facts), sum(f.seconds for f in facts)
    megabytes = sum(f.bytes for f in facts) / 1e6
    print(f"{len(facts)} files, {steps} steps, {seconds:.4g} s, {megabytes:.3g} MB")
    return _OK


def _view(args: argparse.Namespace) -> int:
    from penspin_style.viewer.browser import check_installed
    from penspin_style.viewer.episode_page import open_page

    check_installed()
    files = _files(args.paths)
    page = open_page(files, host=args.host, port=args.port)
    try:
        if args.json:
            print_json({"address": page.address, "episodes": [str(path) for path in files]})
        else:
            print(f"{len(files)} episodes on {page.address}; Ctrl-C ends", flush=True)
        page.run()
    finally:
        page.close()
    return _OK


def _pack(args: argparse.Namespace) -> int:
    from penspin_style.data.formats.penspin import pack

    out = pathlib.Path(args.out)
    if out.suffix not in (".h5", ".hdf5"):
        raise _UsageError(f"{out} must end in .h5")
    if not out.parent.is_dir():
        raise _UsageError(f"the folder {out.parent} does not exist")
    kept, left_out = _opened(args.folder, successful=not args.all)
    pack(kept, out, full=args.full)
    report = {"out": str(out), "episodes": len(kept), "left_out": left_out}
    if args.json:
        print_json(report)
    else:
        rest = f"; {left_out} that were no success left out" if left_out else ""
        print(f"{len(kept)} episodes in {out}{rest}")
    return _OK


def _unpack(args: argparse.Namespace) -> int:
    from penspin_style.data import check
    from penspin_style.data.formats import penspin

    file, folder, card = pathlib.Path(args.file), _new_folder(args.folder), _card(args.card)
    (result,) = check.verify([file], card=card)
    if result.fault is not None and result.fault.key is None:
        raise result.fault
    pack = penspin.read(file)
    lost = {} if result.fault is None else check.damaged(pack, card)
    whole = tuple(key for key in pack.keys if key not in lost)
    if result.fault is not None and not (lost and whole):
        raise result.fault
    control_dt = 1.0 / args.rate if args.rate else pack.control_dt
    others = (check.NO_CARD, *check.rate_notes(pack.control_dt, card))
    notes = [n for n in (result.facts.notes if result.facts else ()) if n not in others]
    notes += check.rate_notes(control_dt, card)
    if pack.says_rate and abs(control_dt / pack.control_dt - 1.0) > _RATE_MARGIN:
        notes.append(f"the file says {1 / pack.control_dt:.4g} Hz, --rate {args.rate:g} is taken")
    demos = dataclasses.replace(pack, keys=whole).demos()
    hand = _hand(args.hand)
    written = list(penspin.unpack(demos, folder, hand, control_dt=control_dt, card=card))
    for text in (*notes, *(f"{why}; it is left out" for why in lost.values())):
        print(f"penspin: {file}: {one_line(text)}", file=sys.stderr)
    if args.json:
        report = {"folder": str(folder), "episodes": len(written), "control_dt": control_dt}
        print_json({**report, "left_out": lost, "notes": notes})
    else:
        rest = f"; {len(lost)} that cannot be trusted left out" if lost else ""
        print(f"{len(written)} episodes in {folder}, {1 / control_dt:.4g} Hz{rest}")
    return _DATA if lost else _OK


def _repair(args: argparse.Namespace) -> int:
    from penspin_style.data.repair import repair

    source, folder = pathlib.Path(args.source), _new_folder(args.folder)
    if not source.exists():
        raise _UsageError(f"{source} does not exist")
    kept, lost = repair(source, folder, lambda: _hand(args.hand))
    if args.json:
        print_json({"folder": str(folder), "kept": kept, "lost": lost})
    else:
        for name, file in kept.items():
            print(printable(f"kept  {name} as {file}"))
        for name, why in lost.items():
            print(printable(f"lost  {name}: {why}"), file=sys.stderr)
        print(f"{len(kept)} kept in {folder}, {len(lost)} lost; {source} is as it was")
    return _OK if kept or not lost else _DATA


def _convert(args: argparse.Namespace) -> int:
    out = pathlib.Path(args.out)
    if args.fps and args.to != "lerobot":
        raise _UsageError("--fps is for --to lerobot")
    kept, left_out = _opened(args.folder, successful=args.successful)
    if args.to == "lerobot":
        from penspin_style.data.formats import lerobot

        lerobot.write(kept, out, fps=args.fps)
    else:
        from penspin_style.data.formats import robomimic

        robomimic.write(kept, out)
    if args.json:
        report = {"out": str(out), "episodes": len(kept), "left_out": left_out}
        print_json({"to": args.to, **report})
    else:
        print(f"{len(kept)} episodes in {out}, as {args.to} reads them")
    return _OK
