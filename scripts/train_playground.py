#!/usr/bin/env python3
"""Train a teacher by PPO in an environment of MuJoCo Playground; write its learning curve.

    pip install 'penspin_style[jax]' playground
    python scripts/train_playground.py CartpoleBalance --samples 200000 --out curve.csv

The curve has a row per iteration: samples, the mean return and length of the episodes that ended.
"""

import argparse
import csv
import pathlib
import time

import penspin_style  # noqa: F401  (before torch: it bounds how torch's threads wait)

# isort: split
import torch

from penspin_style.algo.algorithm import rollout
from penspin_style.algo.ppo import PPO
from penspin_style.bridge.playground import PlaygroundEnv


def train(env: PlaygroundEnv, algo: PPO, samples: int) -> list[dict[str, float]]:
    """Return a row per iteration."""
    rows: list[dict[str, float]] = []
    buffer, root, done = None, env.current(), 0
    began = time.process_time()
    while done < samples:
        buffer, root = rollout(env, algo, root, buffer)
        algo.process(buffer)
        algo.update()
        done += algo.horizon * env.num_envs
        cpu = time.process_time() - began
        rows.append({"samples": done, "cpu_s": round(cpu, 1), **env.metrics()})
        print("  ".join(f"{name} {value:g}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", help="as in Playground's registry: CartpoleBalance, ...")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--num-envs", type=int, default=64)
    parser.add_argument("--episode-length", type=int, help="control steps; default: its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, help="CSV of the curve")
    args = parser.parse_args()
    torch.set_num_threads(1)
    env = PlaygroundEnv(
        args.name, args.num_envs, seed=args.seed, episode_length=args.episode_length
    )
    cfg = PPO.Config(target_kl=None)  # a fixed rate
    algo = PPO(cfg, env.inputs, len(env.actions), device=env.device, seed=args.seed)
    rows = train(env, algo, args.samples)
    if args.out:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
