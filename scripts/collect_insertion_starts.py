"""Write the states of scripted insertions in which episodes of `aloha_peg_insertion` may begin.

python scripts/collect_insertion_starts.py FOLDER [--at-switch | --pick POLICY] [--envs 256]
    [--steps 260] [--seed 0]

The script (`tasks/aloha/peg_insertion_expert.py`) acts from the table on, without noise or latency;
after the switch, noise that lasts is added to its actions in six worlds of ten. FOLDER gets states
after the switch of insertions that succeed, evenly over the distance of the peg's tip:
`tasks/assets/insertion_starts`; another one is used as `algo.starts.states=FOLDER`. With
--at-switch it gets the states at the switch, of all picks: `tasks/assets/preinsertion`, used as
`task.preinsertion=FOLDER`. With --pick these are of picks by a policy of `aloha_pick`, under the
task's noise and latency, as an insertion that follows that policy meets them.
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
from tasks.aloha.one_arm import ActionLatency, Noise  # noqa: E402
from tasks.aloha.peg_insertion import NAME, PegInsertion  # noqa: E402

EVERY, ROWS = 2, 2400  # control steps between two states; states of a bank
BINS = (0.012, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.25)  # m, of the tip's distance
DISTURBED, LASTING = 0.6, 0.9  # share of worlds with noise, its correlation from step to step
HELD = 0.1  # m, height above which an object is held
_HEIGHTS = [18, 25]  # of socket and peg in a row


def record(envs: int, steps: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return states (t, envs, k), the tip's distances (t, envs), and which succeeded (envs,)."""
    at_once = ActionLatency([1.0], [1.0])
    cfg = PegInsertion.Config(
        ring_starts=0.0, noise=Noise(scale=0.0), latency={}, action_latency=at_once
    )
    env = Env(PegInsertion(cfg), envs, seed=seed, nthread=1)
    task, sim = env.task, env.sim
    rng = torch.Generator().manual_seed(seed)
    size = torch.rand(envs, 1, generator=rng)
    size *= torch.rand(envs, 1, generator=rng) < DISTURBED
    noise = torch.zeros(envs, 14)
    expert = task.expert(sim)
    expert.restart(torch.ones(envs, dtype=torch.bool), rng)
    states, distances = [], []
    won, lost = (torch.zeros(envs, dtype=torch.bool) for _ in range(2))
    for _ in range(steps):
        states.append(task.start_state(sim).float().clone())
        distances.append(task.distance(sim).clone())
        action = expert.act()
        fresh = torch.randn(envs, 14, generator=rng)
        noise = LASTING * noise + (1.0 - LASTING**2) ** 0.5 * fresh
        noise[:, [6, 13]] = 0.0
        action = (action + task.is_up(sim)[:, None] * size * noise).clamp(-1.0, 1.0)
        task.apply_action(sim, action)
        sim.step(env.n_substeps)
        won |= task.success(sim)
        lost |= sim.faults != 0
    return torch.stack(states), torch.stack(distances), won & ~lost


def record_picked(envs: int, steps: int, seed: int, policy: str) -> Tensor:
    """Return states (t, envs, k) of picks by a policy, up to the switch and a step beyond."""
    cfg = PegInsertion.Config(ring_starts=0.0, pick_policy=policy)
    env = Env(PegInsertion(cfg), envs, seed=seed, nthread=1)
    states = []
    still = torch.zeros(envs, 14)
    for _ in range(min(steps, cfg.episode_length - 1)):
        states.append(env.task.start_state(env.sim).float().clone())
        env.step(env.current().set("action", still))
    return torch.stack(states)


def along(states: Tensor, distances: Tensor, won: Tensor, seed: int) -> Tensor:
    """Return up to `ROWS` states (n, k) after the switch, evenly over the tip's distance."""
    rng = torch.Generator().manual_seed(seed)
    keep = (states[..., -1] > 0) & won & (states[..., _HEIGHTS] > HELD).all(dim=2)
    keep[torch.arange(len(keep)) % EVERY != 0] = False
    rows, far = states[keep], distances[keep]
    bins = torch.bucketize(far, torch.tensor(BINS))
    odds = 1.0 / torch.bincount(bins, minlength=len(BINS) + 1)[bins].float()
    return rows[torch.multinomial(odds, min(ROWS, len(rows)), generator=rng)]


def at_switch(states: Tensor) -> Tensor:
    """Return the first state (n, k) of each world in which both hands are up with their object."""
    up = states[..., -1] > 0
    first = up.int().argmax(dim=0)
    rows = states[first, torch.arange(states.shape[1])]
    return rows[up.any(dim=0) & (rows[:, _HEIGHTS] > HELD).all(dim=1)]


def main(argv: list[str] | None = None) -> int:
    """Record and write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--at-switch", action="store_true")
    parser.add_argument("--pick", metavar="POLICY", default="")
    parser.add_argument("--envs", type=int, default=256)
    parser.add_argument("--steps", type=int, default=260)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.envs < 1 or args.steps < 1:
        print(f"error: --envs {args.envs}, --steps {args.steps}: at least 1", file=sys.stderr)
        return 2
    if args.pick:
        try:
            states = record_picked(args.envs, args.steps, args.seed, args.pick)
        except ValueError as error:
            print(f"error: --pick: {error}", file=sys.stderr)
            return 2
        rows = at_switch(states)
        origin = f"at the switch of {args.envs} picks by a policy, {len(rows)} of them"
        return write(args.folder, rows, origin, args.envs)
    states, distances, won = record(args.envs, args.steps, args.seed)
    if args.at_switch:
        rows, origin = at_switch(states), f"at the switch of {args.envs} scripted picks"
    else:
        origin = f"along {int(won.sum())} scripted insertions of {args.envs}"
        rows = along(states, distances, won, args.seed) if won.any() else states[:0, 0]
    return write(args.folder, rows, origin, args.envs)


def write(folder: pathlib.Path, rows: Tensor, origin: str, envs: int) -> int:
    """Write the bank; return the exit code."""
    if not len(rows):
        print(f"error: none of {envs} worlds came so far; use more", file=sys.stderr)
        return 2
    try:
        write_bank(folder, rows, {"task": NAME, "origin": origin})
    except FileExistsError:
        print(f"error: {folder} is there already; remove it or name another", file=sys.stderr)
        return 2
    print(f"{folder}: {len(rows)} states {origin}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
