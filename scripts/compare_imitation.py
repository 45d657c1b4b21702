"""Behaviour cloning, ACT and diffusion on one set of demonstrations, evaluated on a twin.

penspin teleop panda --device scripted --episodes 60 --successes --out demos
python scripts/compare_imitation.py STUDENT demos --twin panda [--seeds 3] [--out DIR]

All three begin from random weights, read the same features and images of the student, through its
frozen encoder, and learn from the same episodes. With `--inputs state` they read no image, but all
numbers that the twin measures, as `panda_state`: what is left is the algorithm. ACT's chunks are
averaged over time; of a diffusion policy's the first half is carried out. Each result is one line
of `results.jsonl`, so a comparison that was stopped goes on where it was; one of another student,
twin, folder of episodes or other settings needs another `--out`.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.data.episodes.episode import episodes  # noqa: E402
from penspin_style.deploy.policy import Policy, horizon_of  # noqa: E402
from penspin_style.deploy.torch_policy import TorchPolicy, load_act  # noqa: E402
from penspin_style.features import Input  # noqa: E402
from penspin_style.nets.policy import load_policy, policy_folder, read_policy, save_policy  # noqa: E402
from penspin_style.nets.student import StudentPolicy  # noqa: E402
from penspin_style.system.interval import wilson  # noqa: E402
from penspin_style.train.load_policy import compose_training  # noqa: E402
from penspin_style.train.run import Run  # noqa: E402
from real.serving.action_chunking import EnsembledPolicy, RecedingPolicy  # noqa: E402
from real.twin.batch_twin import BatchTwin  # noqa: E402
from real.twin.config import TwinConfig, load_twin  # noqa: E402
from real.twin.evaluate import evaluate_on_twins  # noqa: E402

METHODS = {
    "clone": ("algo.from_scratch=true", "algo.lr=0.001", "algo.num_epochs=300"),
    # PenSpin's sizes, but for an eighth of the width that costs most
    "act": ("algo.num_queries=16", "algo.dim_feedforward=400", "algo.num_epochs=1500"),
    "diffusion": ("algo.num_epochs=150",),
}
"""Algorithm -> its settings here."""


def policy_of(method: str, folder: pathlib.Path) -> Policy:
    """Return what a training has published, as one action each control step."""
    if method == "clone":
        return TorchPolicy(*load_policy(folder / "policy"))
    if method == "act":
        return EnsembledPolicy(load_act(folder))
    policy = TorchPolicy(*load_policy(folder / "policy"))
    return RecedingPolicy(policy, max(1, horizon_of(policy) // 2))


def state_student(student: str, twin: TwinConfig, folder: pathlib.Path) -> pathlib.Path:
    """Publish a student, untrained, that reads a student's numbers and all others of a twin.

    Raises:
        ValueError: the twin measures no further numbers.
    """
    if folder.is_dir():
        return folder
    policy, card = load_policy(path := policy_folder("STUDENT", student))
    (vector,) = (i for i in card.inputs if not i.is_image)
    known = {f.name for f in vector.features}
    cameras = {i.name for i in card.inputs if i.is_image}
    there = BatchTwin(twin).features.values()
    more = [f for f in there if f.name not in known | cameras and len(f.shape) < 2]
    if not more:
        raise ValueError(
            f"--inputs state: the twin measures no number beside {', '.join(sorted(known))}; "
            "give one that does, as panda_state"
        )
    inputs = (Input(vector.name, (*vector.features, *more)),)
    network = {k: v for k, v in policy.describe().items() if k not in ("kind", "max_depth")}
    made = StudentPolicy(
        inputs, len(card.actions), max_depth={}, rng=torch.Generator().manual_seed(0), **network
    )
    own = dataclasses.replace(
        card, inputs=inputs, preprocessing={}, network=made.describe(), score={}
    )
    save_policy(made, own, folder, read_policy(path)[2])
    return folder


def few(folder: pathlib.Path, count: int, out: pathlib.Path) -> pathlib.Path:
    """Return a folder of the first so many episodes of a folder, as links to their files.

    Raises:
        ValueError: there are fewer.
    """
    found = episodes(folder)
    if len(found) < count:
        raise ValueError(f"--demonstrations {count}: {folder} holds {len(found)} episodes")
    out.mkdir(parents=True, exist_ok=True)
    for file in found[:count]:
        link = out / file.name
        if not link.is_symlink():
            link.symlink_to(file.resolve())
    return out


def named(method: str, seed: int, args: argparse.Namespace) -> str:
    """Return the name of a training, another one for other inputs or demonstrations."""
    few = () if args.demonstrations is None else (str(args.demonstrations),)
    state = ("state",) if args.inputs == "state" else ()
    return "-".join((method, *state, *few, str(seed)))


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a result is of, beside its name."""
    keys = ("student", "demos", "twin", "episodes", "seed_of_episodes", "set")
    return {key: vars(args)[key] for key in keys}


def learn(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one policy and evaluate it; return what is noted."""
    name, began = named(method, seed, args), time.process_time()
    overrides = [f"algo={method}", f"algo.init_from={args.student}", f"algo.data={args.demos}"]
    overrides += [
        f"name={name}",
        f"seed={seed}",
        f"out={args.out}",
        "loggers=[csv]",
        "learn_threads=1",
        *METHODS[method],
        *args.set,
    ]
    if any(pathlib.Path(args.out).glob(f"*/{name}/checkpoints/*/manifest.json")):
        overrides.append("resume=true")
    run = Run(*compose_training(overrides))
    if code := run.fit(quiet=True):
        raise SystemExit(code)
    trained = time.process_time() - began
    policy = policy_of(method, run.folder)
    found = evaluate_on_twins(
        load_twin(args.twin), policy, episodes=args.episodes, seed=args.seed_of_episodes
    )
    return {
        **{"name": name, "method": method, "seed": seed, "episodes": args.episodes},
        "about": args.about,
        "successes": int(found.values["success"].sum()),
        "loss": policy.card.score["validation_loss"],
        "train_cpu_s": round(trained),
        "eval_cpu_s": round(time.process_time() - began - trained),
    }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| | success | 95 % interval | each seed | CPU seconds to train |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method in METHODS:
        own = [row for row in rows if row["method"] == method]
        if not own:
            continue
        hits, n = (sum(row[key] for row in own) for key in ("successes", "episodes"))
        low, high = wilson(hits / n, n)
        each = ", ".join(f"{row['successes'] / row['episodes']:.1%}" for row in own)
        cpu = sum(row["train_cpu_s"] for row in own) / len(own)
        lines.append(
            f"| `{method}` | {hits / n:.1%} | {low:.1%} to {high:.1%} | {each} | {cpu:.0f} |"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("student", help="run folder, whose inputs and encoder are taken")
    parser.add_argument("demos", help="folder of episodes")
    parser.add_argument("--twin", required=True, help="what it is evaluated on")
    parser.add_argument("--inputs", choices=("vision", "state"), default="vision")
    parser.add_argument("--demonstrations", type=int, help="the first so many; default: all")
    parser.add_argument("--out", default="outputs/compare_imitation")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--seed-of-episodes", type=int, default=7_000_003)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="for all three")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    results = out / "results.jsonl"
    rows = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    args.about = about(args)
    names = {named(method, seed, args) for method in args.methods for seed in range(args.seeds)}
    for row in rows:
        if row["name"] in names and row.get("about", args.about) != args.about:
            parser.error(
                f"--out {args.out}: {row['name']} is there, of {row['about']}; give another folder"
            )
    try:
        if args.inputs == "state":
            args.student = state_student(args.student, load_twin(args.twin), out / "student")
        if args.demonstrations is not None:
            args.demos = few(
                pathlib.Path(args.demos), args.demonstrations, out / f"first-{args.demonstrations}"
            )
    except ValueError as error:
        parser.error(str(error))
    for seed in range(args.seeds):
        for method in args.methods:
            if named(method, seed, args) in (row["name"] for row in rows):
                continue
            rows.append(learn(method, seed, args))
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    own = {named(method, row["seed"], args) for row in rows for method in METHODS}
    print(table([row for row in rows if row["name"] in own]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
