"""Write the states along scripted hand-overs in which episodes of `aloha_handover` may begin.

python scripts/collect_handover_starts.py FOLDER [--envs 160] [--steps 420] [--seed 0]

The script (`tasks/aloha/handover_expert.py`) acts in the task's own world. Only hand-overs that end
in success count; every stage gives equally many states. The bank that comes with the task is
`tasks/assets/handover_starts`; another one is used as `algo.starts.states=FOLDER`.
"""

import argparse
import pathlib
import sys

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.env.env import Env  # noqa: E402
from penspin_style.env.start_bank import write_bank  # noqa: E402
from tasks.aloha.handover import NAME, HandOver  # noqa: E402
from tasks.aloha.handover_expert import STAGES, Expert  # noqa: E402

EVERY, EACH = 5, 120  # control steps between two states; states of each stage


def record(envs: int, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return states (t, envs, k), stages (t, envs), and which hand-overs succeeded (envs,)."""
    env = Env(HandOver(HandOver.Config(episode_length=steps + 1)), envs, seed=seed)
    task, sim = env.task, env.sim
    expert = Expert(task, sim)
    expert.restart(torch.ones(envs, dtype=torch.bool), env.rng)
    states, stages = [], []
    lost = torch.zeros(envs, dtype=torch.bool)
    for step in range(steps):
        if step % EVERY == 0:
            states.append(task.start_state(sim).float().clone())
            stages.append(expert.stage.clone())
        action = expert.act()
        task.apply_action(sim, action)
        sim.step(env.n_substeps)
        task.reward(sim, action)
        lost |= task.terminated(sim) | (sim.faults != 0)
    return torch.stack(states), torch.stack(stages), task.success(sim) & ~lost


def choose(states: Tensor, stages: Tensor, won: Tensor, seed: int) -> Tensor:
    """Return up to `EACH` states (n, k) of every stage, of hand-overs that were won."""
    rng = torch.Generator().manual_seed(seed)
    rows, stage = states[:, won].flatten(0, 1), stages[:, won].flatten()
    picks = []
    for i in range(len(STAGES)):
        ids = (stage == i).nonzero()[:, 0]
        picks.append(ids[torch.randperm(len(ids), generator=rng)[:EACH]])
    return rows[torch.cat(picks)]


def main(argv: list[str] | None = None) -> int:
    """Record and write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--envs", type=int, default=160)
    parser.add_argument("--steps", type=int, default=420)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.envs < 1 or args.steps < 1:
        print(f"error: --envs {args.envs}, --steps {args.steps}: at least 1", file=sys.stderr)
        return 2
    states, stages, won = record(args.envs, args.steps, args.seed)
    if not won.any():
        print(f"error: none of {args.envs} hand-overs succeeded; use more", file=sys.stderr)
        return 2
    rows = choose(states, stages, won, args.seed)
    origin = f"along {int(won.sum())} scripted hand-overs of {args.envs}, evenly over their stages"
    try:
        write_bank(args.folder, rows, {"task": NAME, "origin": origin})
    except FileExistsError:
        print(f"error: {args.folder} is there already; remove it or name another", file=sys.stderr)
        return 2
    print(f"{args.folder}: {len(rows)} states {origin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
