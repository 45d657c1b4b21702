"""Evaluate what distillation learns from: the script of a task, `Task.expert`.

    python scripts/evaluate_script.py task=real2sim_pick_place --episodes 1400 'task.objects=[bowl]'

Success is reported as `penspin eval` does for a policy, by kind of episode where a task has kinds.
"""

import argparse
import sys
import time

import torch

from penspin_style.cli.arguments import positive
from penspin_style.cli.report import print_evaluation
from penspin_style.env.env import Env
from penspin_style.env.task import task_name
from penspin_style.train.compose import compose_train
from penspin_style.train.evaluate import evaluate


def main(argv: list[str] | None = None) -> int:
    """Run one episode in each of as many environments as there are episodes."""
    parser = argparse.ArgumentParser(description="Evaluate the script of a task.")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--episodes", type=positive, default=1400)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_intermixed_args(argv)
    try:
        cfg, kind, _ = compose_train(args.overrides)
        env = Env(
            kind(cfg.task),
            args.episodes,
            torch.device("cpu"),
            seed=args.seed,
            engine=cfg.sim.engine,
            nthread=cfg.sim.nthread,
            expert=True,
        )
    except ValueError as error:
        print(f"evaluate_script.py: {error}", file=sys.stderr)
        return 2
    began = time.perf_counter()
    found = evaluate(env, lambda td: td["expert_action"], seed=args.seed)
    print_evaluation(task_name(kind), found, time.perf_counter() - began, kind.score)
    return 0


if __name__ == "__main__":
    sys.exit(main())
