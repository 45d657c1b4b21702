"""`penspin record`: keep a policy's roll-outs, to clone them."""

import argparse
import pathlib
from typing import Any

import torch
from tensordict import TensorDictBase

from penspin_style.algo.algorithm import labels, own_steps
from penspin_style.data.rollouts import LABEL, RolloutWriter
from penspin_style.env.task import task_name
from penspin_style.features import in_scale_of
from penspin_style.system.terminal import print_json
from penspin_style.train.compose import compose_train, typed_tasks
from penspin_style.train.load_policy import LoadedPolicy, open_policy
from penspin_style.train.run import EXIT_OK


def run(args: argparse.Namespace) -> int:
    """Record what is observed, in the policy's task or the one that is named, and the actions."""
    overrides, path = list(args.overrides), pathlib.Path(args.policy)
    named = typed_tasks(overrides)
    source = open_policy(path, [] if named else overrides, trusted=named)
    cfg, task = source.cfg, source.task
    if named:
        cfg, task, _ = compose_train(overrides)
        source = _in_task(source, cfg, task)
    env = source.env(args.num_envs, args.seed, training=True, labels=True)
    facts = {"task": task_name(task), "policy": source.card.run}
    facts |= {"control_dt": cfg.task.control_dt, "seed": args.seed}
    writer = RolloutWriter(pathlib.Path(args.out), env.inputs, facts)
    root = env.current()
    with torch.no_grad():
        for _ in range(-(-args.episodes // args.num_envs) * env.cfg.episode_length):
            root.set("action", labels(root, source.act(root)))
            rows = {i.name: root[i.name] for i in env.inputs}
            rows[LABEL] = root["action"]
            own = own_steps(root)  # the policy did nothing in the others
            if own is None or own.any():
                writer.add(rows if own is None else {k: v[own] for k, v in rows.items()})
            _, root = env.step_and_maybe_reset(root)
    writer.close()
    if args.json:
        print_json({"folder": args.out, "rows": writer.rows, "shards": writer.shards})
    else:
        print(f"{writer.rows} rows in {args.out}")
    return EXIT_OK


def _in_task(source: LoadedPolicy, cfg: Any, task: Any) -> LoadedPolicy:
    """Return a policy that acts in another task than its own, in the scales of its channels."""
    card, factors = in_scale_of(source.card, task(cfg.task).actions)

    def act(root: TensorDictBase) -> torch.Tensor:
        action = source.act(root)
        return action * action.new_tensor(factors)

    return LoadedPolicy(cfg, task, card, act)
