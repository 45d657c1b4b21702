"""Teach a policy of `aloha_pick` to carry as the script does; the rest it is to do as it did.

python scripts/clone_carrying.py POLICY FOLDER [--steps 640] [--envs 256] [--std 0.2] [--seed 0]

PPO finds grasping sooner than where to carry. Here the policy acts, 60 % of the episodes begin
along scripted picks, and wherever the bar is in the hand the label is what the script
(`tasks/aloha/pick_expert.py`) would do, elsewhere what POLICY does: DAgger with two teachers.
FOLDER is for `algo.init_from`; its exploration begins with the deviation --std.
"""

import argparse
import copy
import pathlib
import sys

import torch
from torch import Tensor

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from penspin_style.config import StartsConfig  # noqa: E402
from penspin_style.env.env import Env  # noqa: E402
from penspin_style.nets.gaussian import raw_deviation  # noqa: E402
from penspin_style.nets.policy import open_policy, save_policy  # noqa: E402
from penspin_style.train.compose import compose_train  # noqa: E402
from tasks.aloha.pick import NAME, Pick  # noqa: E402
from tasks.aloha.pick_expert import STAGES, PickExpert  # noqa: E402

BATCH, UPDATES, RATE = 1024, 5, 1e-3
NOISE = 0.15  # of the actions that are carried out
HELP = 0.15  # share of the steps with a bar in the hand at which the script acts


def script_labels(task: Pick, expert: PickExpert) -> tuple[Tensor, Tensor]:
    """Return where the bar is in the hand (n,), and what the script would do there, (n, 7)."""
    sim, carry = expert.sim, STAGES.index("carry")
    up = task.one.place()[:, 2] > task.half_width(sim) + 0.01
    held = task.arm.grasps(sim, 1.0) & up
    fresh = held & (expert.stage != carry)
    expert.reach.sag.masked_fill_(fresh[:, None], 0.0)
    expert.stage.copy_(torch.where(held, carry, 0))
    return held, expert.act()


def teach(env: Env, policy: torch.nn.Module, steps: int, seed: int) -> None:
    """Fit the policy, in place, to the labels along its own way."""
    n, rng = env.num_envs, torch.Generator().manual_seed(seed)
    task: Pick = env.task  # type: ignore[assignment]
    expert = PickExpert(task, env.sim)
    expert.restart(torch.ones(n, dtype=torch.bool))
    before = copy.deepcopy(policy)
    learned = [p for name, p in policy.named_parameters() if name != "raw_std"]
    optimizer = torch.optim.Adam(learned, lr=RATE)
    rows = torch.zeros(steps * n, env.current()["teacher"].shape[1])
    labels = torch.zeros(steps * n, len(task.actions))
    root = env.current()
    for step in range(steps):
        seen = root["teacher"]
        held, script = script_labels(task, expert)
        with torch.no_grad():
            label = torch.where(held[:, None], script, before.act(seen))
            action = policy.act(seen)
        rows[step * n : (step + 1) * n], labels[step * n : (step + 1) * n] = seen, label
        helped = held & (torch.rand(n, generator=rng) < HELP)
        action = torch.where(helped[:, None], script, action)
        action = action + NOISE * torch.randn(action.shape, generator=rng)
        transition, root = env.step_and_maybe_reset(root.set("action", action.clamp(-1.0, 1.0)))
        expert.restart(transition["next", "done"][:, 0])
        optimizer.param_groups[0]["lr"] = RATE * (1.0 - 0.9 * step / steps)
        for _ in range(UPDATES):
            batch = torch.randint((step + 1) * n, (BATCH,), generator=rng)
            loss = (policy.act(rows[batch]) - labels[batch]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def main(argv: list[str] | None = None) -> int:
    """Teach and save; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy")
    parser.add_argument("folder", type=pathlib.Path)
    for name, kind, default in (("steps", int, 640), ("envs", int, 256), ("std", float, 0.2)):
        parser.add_argument(f"--{name}", type=kind, default=default)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if min(args.steps, args.envs, args.std) <= 0:
        print("error: --steps, --envs and --std must be above 0", file=sys.stderr)
        return 2
    try:
        policy, card = open_policy("POLICY", args.policy)
        if card.task != NAME:
            raise ValueError(f"{args.policy} is a policy of {card.task}, not of {NAME}")
        if args.folder.exists():
            raise ValueError(f"{args.folder} is there already; remove it or name another")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    cfg, kind, text = compose_train([f"task={NAME}"])
    starts = StartsConfig(bank=0.6)
    env = Env(kind(cfg.task), args.envs, seed=args.seed, stagger=True, starts=starts)
    teach(env, policy, args.steps, args.seed)
    with torch.no_grad():
        policy.raw_std.fill_(raw_deviation(args.std))
    facts = {"task": NAME, "run": card.run, "score": {}, "versions": card.versions}
    fresh = env.card(**facts, network=policy.describe(), in_keys=policy.in_keys)
    save_policy(policy, fresh, args.folder, text)
    print(args.folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
