"""What a student gains from the robot's own successes, on a twin that is not the world it knows.

python scripts/compare_finetune.py TEACHER STUDENT --twin NAME [--out DIR] [options]

    1  evaluate the student in the world of its training, and on the twin as it is
    2  roll the teacher out in that world, repeat its targets on the twin, keep what succeeds
    3  fine-tune the student on some of these, for each number and seed; evaluate it on the twin
    4  the same network from scratch, and ACT, on the same trajectories

Everything is evaluated by the same rule over the same starts. Each result is one line of
`results.jsonl`, so a comparison that was killed goes on where it was. At the end, or with --table,
comes the table: shares with Wilson's 95 % interval over all episodes of a row, and each seed's own.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.algo.act import ACT, ACTConfig, act_card  # noqa: E402
from penspin_style.algo.chunks import eyes_of  # noqa: E402
from penspin_style.algo.clone import Clone, CloneConfig  # noqa: E402
from penspin_style.algo.recorded import Recorded, origin  # noqa: E402
from penspin_style.data.dataset import Trajectories, load  # noqa: E402
from penspin_style.data.episodes.episode import Header, episodes, write_episode  # noqa: E402
from penspin_style.deploy.policy import Policy  # noqa: E402
from penspin_style.deploy.torch_policy import TorchPolicy, load_act  # noqa: E402
from penspin_style.nets.policy import (  # noqa: E402
    load_policy,
    load_policy_and_config,
    policy_folder,
    save_policy,
)
from penspin_style.system.interval import wilson  # noqa: E402
from penspin_style.train.folder import versions  # noqa: E402
from penspin_style.train.load_policy import config_of, open_policy  # noqa: E402
from real.control.success import SuccessRule  # noqa: E402
from real.replay.collect import CUT, Stage, Trajectory, smoothed, with_delays  # noqa: E402
from real.serving.action_chunking import EnsembledPolicy  # noqa: E402
from real.twin.batch_twin import BatchTwin  # noqa: E402
from real.twin.config import TwinConfig, load_twin  # noqa: E402
from real.twin.evaluate import evaluate_on_twins  # noqa: E402

LEARNED = ("finetuned", "scratch", "act")
TITLES = {
    "home": "student, in the world of its training",
    "before": "student, before",
    "replay": "open-loop replay of the teacher, from known starts",
    "finetuned": "student, fine-tuned",
    "scratch": "the same network from scratch",
    "act": "ACT",
}


class Comparison:
    """One comparison in one folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.out = args, pathlib.Path(args.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.results = self.out / "results.jsonl"
        self.rule = SuccessRule.parse(args.rule)
        self.twin = load_twin(args.twin)
        source = open_policy(pathlib.Path(args.student), [])
        self.card = with_delays(source)
        folder = policy_folder("STUDENT", args.student)
        self.student, own, config = load_policy_and_config(folder)
        self.made_from, self.config = origin(folder, own), config_of(folder, config)[1]

    def run(self) -> None:
        """Do what is not done yet."""
        args = self.args
        if not self._has("home"):
            plain = TwinConfig(
                self.twin.task,
                overrides=self.twin.overrides,
                features=self.twin.features,
                measured=self.twin.measured,
            )
            self._evaluate("home", {}, TorchPolicy(self.student, self.card), plain)
        if not self._has("before"):
            self._evaluate("before", {}, TorchPolicy(self.student, self.card))
        if not self._has("replay"):
            self._collect()
        todo = [
            {"method": method, "trajectories": count, "seed": seed}
            for seed in range(args.seeds)
            for method in args.methods
            for count in args.trajectories
        ]
        for facts in todo:
            name = "-".join(map(str, facts.values()))
            if not self._has(name):
                self._learn(name, facts)

    def table(self) -> str:
        """Return the results as Markdown."""
        groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for row in self._rows():
            groups.setdefault((row["method"], row.get("trajectories", 0)), []).append(row)
        lines = [
            "| on the twin | trajectories | success | 95 % interval | each seed |",
            "| --- | --- | --- | --- | --- |",
        ]
        for method, title in TITLES.items():
            for (own, count), rows in sorted(groups.items()):
                if own != method:
                    continue
                hits, n = (sum(r[k] for r in rows) for k in ("successes", "episodes"))
                low, high = wilson(hits / n, n)
                each = ", ".join(f"{r['successes'] / r['episodes']:.1%}" for r in rows)
                lines.append(
                    f"| {title} | {count or ''} | {hits / n:.1%} | {low:.1%} to {high:.1%} | "
                    f"{each if count else ''} |"
                )
        return "\n".join(lines)

    # Results.

    def _rows(self) -> list[dict[str, Any]]:
        if not self.results.exists():
            return []
        return [json.loads(line) for line in self.results.read_text().splitlines()]

    def _has(self, name: str) -> bool:
        return any(row["name"] == name for row in self._rows())

    def _note(self, name: str, facts: dict[str, Any], found: dict[str, np.ndarray]) -> None:
        """Append one line: counts, and the means of whatever the task measures."""
        good = self.rule.where(found)
        means = {key: float(np.mean(value)) for key, value in found.items()}
        row = {"name": name, "method": name, **facts, "episodes": len(good)}
        row |= {"successes": int(good.sum()), "means": means, "at": time.strftime("%H:%M:%S")}
        with self.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: {good.mean():.1%} of {len(good)}", flush=True)

    def _evaluate(
        self, name: str, facts: dict[str, Any], policy: Policy, twin: TwinConfig | None = None
    ) -> None:
        args = self.args
        found = evaluate_on_twins(twin or self.twin, policy, episodes=args.episodes, seed=args.seed)
        values = {k: v.numpy() for k, v in found.values.items()} | {"steps": found.steps.numpy()}
        self._note(name, facts, values)

    # Trajectories.

    def _collect(self) -> None:
        """Repeat trajectories of the teacher; keep the first successes."""
        args, folder = self.args, self.out / "replays"
        for left in episodes(folder) if folder.is_dir() else []:
            left.unlink()  # of a collection that was killed
        played = self._demonstrations()
        batch = BatchTwin(self.twin, len(played))
        batch.seed(args.seed + 1)
        batch.reset({n: np.array([p.start[n] for p in played]) for n in played[0].start})
        lengths = np.array([len(p.columns["time"]) for p in played])
        targets = np.stack([padded(p.columns["target"], lengths.max()) for p in played], axis=1)
        rows: list[dict[str, np.ndarray]] = []
        alive = np.zeros(len(played), int)
        for target in targets:
            alive += ~batch.done
            seen = {f"observation/{k}": v for k, v in batch.observe().values.items()}
            last = batch.target
            sent = batch.command(target)
            action = batch.decoder.encode(sent, last)
            rows.append({**seen, "action": action, "target": target, "sent": sent})
        found = batch.measures()
        good = np.flatnonzero(self.rule.where(found))
        head = Header.of_card(self.card, source="twin", robot=args.twin)
        for i in good[: args.pool]:
            cut = round(CUT / batch.control_dt) if found["terminated"][i] else 0
            steps = min(int(lengths[i]), int(alive[i]) - cut)
            columns = {key: np.stack([row[key][i] for row in rows[:steps]]) for key in rows[0]}
            columns["time"] = batch.control_dt * np.arange(steps)
            kept = {c.name: columns[c.name] for c in head.channels} | {"time": columns["time"]}
            facts = {"start": played[i].start, "teacher": args.teacher, "speed": args.speed}
            mine = dataclasses.replace(head, card=None, facts=facts)
            write_episode(folder, mine, kept, True)
        self._note("replay", {}, found)

    def _demonstrations(self) -> list[Trajectory]:
        """Return what the teacher does in the world that it knows, as it is to be repeated."""
        args = self.args
        source = open_policy(pathlib.Path(args.teacher), [])
        stage = Stage(source, args.twin, [], args.replays, speed=args.speed)
        columns = args.smooth_channels or range(len(stage.card.actions))
        out = []
        for found in stage.play(args.seed + 2, self.rule):
            steps = min(len(found.columns["time"]), args.steps or sys.maxsize)
            rows = {key: value[:steps] for key, value in found.columns.items()}
            rows["target"] = smoothed(rows["sent"], args.smooth, columns)
            out.append(dataclasses.replace(found, columns=rows))
        won = np.mean([self.rule.holds(p.measures) for p in out])
        print(f"teacher in the world it knows: {won:.1%} of {len(out)}", flush=True)
        return out

    # Learning.

    def _learn(self, name: str, facts: dict[str, Any]) -> None:
        """Train one policy, keep it in a folder, evaluate it."""
        method, count, seed = facts["method"], facts["trajectories"], facts["seed"]
        folder, began = self.out / "policies" / name, time.perf_counter()
        if not (folder / "policy").exists():
            learner = self._learner(method, count, seed)
            learner.made_from = self.made_from
            while not learner.finished:
                learner.update()
            card, _ = learner.result(f"{self.card.task}/{name}/seed{seed}", versions())
            save_policy(learner.policy, card, folder / "policy", self.config)
        if method == "act":
            policy: Policy = EnsembledPolicy(load_act(folder))
        else:
            policy = TorchPolicy(*load_policy(folder / "policy"))
        facts = {**facts, "seconds": round(time.perf_counter() - began)}
        score = policy.card.score
        facts |= {"epoch": score["epoch"], "validation": score["validation_loss"]}
        self._evaluate(name, facts, policy)

    def _learner(self, method: str, count: int, seed: int) -> Recorded:
        """Return what is to learn from so many trajectories."""
        args, where = self.args, {"device": torch.device("cpu"), "seed": seed}
        if method == "act":
            cfg = ACTConfig(**args.act)
            card = act_card(cfg, self.card)
            data = chosen(load(self.out / "replays", card), count, seed)
            return ACT(cfg, eyes_of(self.student), card, data, **where)
        scratch = {**args.scratch, "from_scratch": True} if method == "scratch" else {}
        cfg = CloneConfig(**{**args.finetune, **scratch})
        data = chosen(load(self.out / "replays", self.card), count, seed)
        return Clone(cfg, self.student, self.card, data, **where)


def chosen(data: Trajectories, count: int, seed: int) -> Trajectories:
    """Return so many trajectories, drawn by the seed.

    Raises:
        ValueError: there are fewer.
    """
    if len(data.rows) < count:
        raise ValueError(f"only {len(data.rows)} replays succeeded, {count} are wanted")
    ids = sorted(np.random.default_rng(seed).permutation(len(data.rows))[:count].tolist())
    sums = list(data.sha256.items())
    return Trajectories([data.rows[i] for i in ids], dict(sums[i] for i in ids))


def padded(targets: np.ndarray, steps: int) -> np.ndarray:
    """Return targets (steps, naction), the last one again and again at the end."""
    return targets[np.arange(steps).clip(max=len(targets) - 1)]


def pairs(text: str) -> dict[str, Any]:
    """Read `key=value,...`; values are JSON or text."""

    def read() -> Iterator[tuple[str, Any]]:
        for part in filter(None, text.split(",")):
            key, _, value = part.partition("=")
            try:
                yield key, json.loads(value)
            except json.JSONDecodeError:
                yield key, value

    return dict(read())


def main(argv: Sequence[str] | None = None) -> int:
    """Compare; print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("teacher", help="run folder")
    parser.add_argument("student", help="run folder")
    parser.add_argument("--twin", required=True, help="the robot's stand-in, as panda_shifted")
    parser.add_argument("--out", default="outputs/compare_finetune")
    parser.add_argument("--rule", default="success", help="what a success is, as turns>=0.5")
    parser.add_argument("--speed", type=float, default=1.0, help="share of the teacher's actions")
    parser.add_argument(
        "--smooth", type=int, default=1, help="control steps to average targets over"
    )
    parser.add_argument("--smooth-channels", type=int, nargs="*", default=[], help="default: all")
    parser.add_argument("--steps", type=int, default=0, help="control steps to repeat; 0: all")
    parser.add_argument("--pool", type=int, default=90, help="successful replays to keep")
    parser.add_argument("--trajectories", type=int, nargs="+", default=[15, 30, 45])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--replays", type=int, default=200, help="trajectories to repeat")
    parser.add_argument(
        "--seed", type=int, default=7_000_003, help="of the starts of an evaluation"
    )
    parser.add_argument("--methods", nargs="+", default=list(LEARNED), choices=LEARNED)
    parser.add_argument("--finetune", type=pairs, default={}, help="settings, as lr=3e-4,views=2")
    parser.add_argument("--scratch", type=pairs, default={}, help="where scratch differs")
    parser.add_argument("--act", type=pairs, default={}, help="ACT's, as num_queries=20")
    parser.add_argument("--table", action="store_true", help="print what there is, and stop")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    comparison = Comparison(args)
    if not args.table:
        comparison.run()
    print(comparison.table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
