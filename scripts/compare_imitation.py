"""Behaviour cloning, ACT and diffusion on one set of demonstrations, evaluated on a twin.

penspin teleop panda --device scripted --episodes 60 --successes --out demos
python scripts/compare_imitation.py STUDENT demos --twin panda [--seeds 3] [--out DIR]

All three begin from random weights, read the same features and images of the student, through its
frozen encoder, and learn from the same episodes. Each result is one line of `results.jsonl`, so a
comparison that was stopped goes on where it was.
"""

import argparse
import json
import pathlib
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.deploy.policy import Policy  # noqa: E402
from penspin_style.deploy.torch_policy import TorchPolicy, load_act  # noqa: E402
from penspin_style.nets.policy import load_policy  # noqa: E402
from penspin_style.system.interval import wilson  # noqa: E402
from penspin_style.train.load_policy import compose_training  # noqa: E402
from penspin_style.train.run import Run  # noqa: E402
from real.serving.action_chunking import EnsembledPolicy  # noqa: E402
from real.twin.config import load_twin  # noqa: E402
from real.twin.evaluate import evaluate_on_twins  # noqa: E402

METHODS = {
    "clone": ("algo.from_scratch=true", "algo.lr=0.001", "algo.num_epochs=300"),
    # PenSpin's sizes, but for an eighth of the width that costs most
    "act": ("algo.num_queries=16", "algo.dim_feedforward=400", "algo.num_epochs=1500"),
    "diffusion": (),
}
"""Algorithm -> its settings here. `clone` answers one action; chunks are averaged over time."""


def policy_of(method: str, folder: pathlib.Path) -> Policy:
    """Return what a training has published, as one action each control step."""
    if method == "clone":
        return TorchPolicy(*load_policy(folder / "policy"))
    if method == "act":
        return EnsembledPolicy(load_act(folder))
    return EnsembledPolicy(TorchPolicy(*load_policy(folder / "policy")))


def learn(method: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one policy and evaluate it; return what is noted."""
    name, began = f"{method}-{seed}", time.process_time()
    overrides = [f"algo={method}", f"algo.init_from={args.student}", f"algo.data={args.demos}"]
    overrides += [
        f"name={name}",
        f"seed={seed}",
        f"out={args.out}",
        "loggers=[csv]",
        "learn_threads=1",
        *args.set,
    ]
    if any(pathlib.Path(args.out).glob(f"*/{name}/checkpoints/*/manifest.json")):
        overrides.append("resume=true")
    run = Run(*compose_training([*overrides, *METHODS[method]]))
    if code := run.fit(quiet=True):
        raise SystemExit(code)
    trained = time.process_time() - began
    policy = policy_of(method, run.folder)
    found = evaluate_on_twins(
        load_twin(args.twin), policy, episodes=args.episodes, seed=args.seed_of_episodes
    )
    return {
        **{"name": name, "method": method, "seed": seed, "episodes": args.episodes},
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
    for seed in range(args.seeds):
        for method in args.methods:
            if any(row["name"] == f"{method}-{seed}" for row in rows):
                continue
            rows.append(learn(method, seed, args))
            with results.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
