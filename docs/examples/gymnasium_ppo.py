"""PPO in one file, as CleanRL writes it, on a task as a Gymnasium vector environment.

    python docs/examples/gymnasium_ppo.py [--task ID] [--samples N] [--num-envs N] [--seed N]

Nothing of the library is used but the environment, so any other learner goes in this place. An
environment restarts in the step that ends its episode (`AutoresetMode.SAME_STEP`): the observation
that `step` returns is then the first of the new episode, and the last of the old one, from which a
truncated episode bootstraps, is in `infos["final_obs"]`.
"""

import argparse
import itertools
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal


@dataclass
class Args:
    """Settings; each is an option of the command line."""

    task: str = "tasks:penspin_style/PandaLiftCube-v0"
    samples: int = 400_000
    """Environment steps, summed over environments."""
    num_envs: int = 64
    horizon: int = 32
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 1e-3
    gamma: float = 0.97
    gae_lambda: float = 0.95
    clip: float = 0.2
    entropy: float = 0.003
    seed: int = 0


def mlp(sizes: list[int], scale: float) -> nn.Sequential:
    """Return a perceptron with tanh between layers, orthogonal weights, a last layer of `scale`."""
    layers: list[nn.Module] = []
    for i, (n, m) in enumerate(itertools.pairwise(sizes)):
        last = i == len(sizes) - 2
        linear = nn.Linear(n, m)
        nn.init.orthogonal_(linear.weight, scale if last else 2**0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear] if last else [linear, nn.Tanh()]
    return nn.Sequential(*layers)


class Agent(nn.Module):
    """A Gaussian policy and a value; observations are normalised by what `see` has shown."""

    def __init__(self, nobs: int, naction: int) -> None:
        super().__init__()
        self.mean = mlp([nobs, 128, 128, naction], 0.01)
        self.value = mlp([nobs, 128, 128, 1], 1.0)
        self.log_std = nn.Parameter(torch.full((naction,), -0.5))
        self.moments = torch.zeros(2, nobs, dtype=torch.float64)
        self.count = 0

    def see(self, obs: Tensor) -> None:
        """Add observations (..., nobs) to the statistics."""
        rows = obs.reshape(-1, obs.shape[-1]).double()
        self.moments += torch.stack((rows, rows.square())).sum(dim=1)
        self.count += len(rows)

    def normalize(self, obs: Tensor) -> Tensor:
        """Return observations with mean 0 and deviation 1."""
        mean, square = self.moments / max(self.count, 1)
        return ((obs - mean) / (square - mean.square() + 1e-6).sqrt()).clamp(-10, 10).float()

    def dist(self, obs: Tensor) -> Normal:
        """Return the distribution of actions; the environment clips them to [-1, 1]."""
        return Normal(self.mean(self.normalize(obs)), self.log_std.exp())

    def values(self, obs: Tensor) -> Tensor:
        """Return the values, (...)."""
        return self.value(self.normalize(obs)).squeeze(-1)


def last_of_episode(obs: np.ndarray, infos: dict) -> np.ndarray:
    """Return the true next observations: where an episode ended, its last instead of the new."""
    if "final_obs" not in infos:
        return obs
    ended = infos["_final_obs"]
    obs = obs.copy()
    obs[ended] = np.stack(list(infos["final_obs"][ended]))
    return obs


def advantages(args: Args, batch: dict[str, Tensor], agent: Agent) -> tuple[Tensor, Tensor]:
    """Return advantages and returns, [horizon, num_envs], by generalised advantage estimation.

    A truncated episode goes on in thought, so it bootstraps; a terminated one has no future.
    """
    with torch.no_grad():
        value, following = agent.values(batch["obs"]), agent.values(batch["next_obs"])
    delta = batch["reward"] + args.gamma * following * (1 - batch["terminated"]) - value
    out, running = torch.zeros_like(delta), torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        running = delta[t] + args.gamma * args.gae_lambda * (1 - batch["done"][t]) * running
        out[t] = running
    return out, out + value


def update(
    args: Args, agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor]
) -> None:
    """Make several passes of shuffled minibatches over what was collected."""
    advantage, returns = advantages(args, batch, agent)
    rows = {k: batch[k].flatten(0, 1) for k in ("obs", "action", "log_prob")}
    rows |= {"advantage": advantage.flatten(), "returns": returns.flatten()}
    for _ in range(args.epochs):
        for index in torch.randperm(len(rows["obs"])).chunk(args.minibatches):
            b = {k: v[index] for k, v in rows.items()}
            dist = agent.dist(b["obs"])
            ratio = (dist.log_prob(b["action"]).sum(-1) - b["log_prob"]).exp()
            gain = (b["advantage"] - b["advantage"].mean()) / (b["advantage"].std() + 1e-8)
            clipped = ratio.clamp(1 - args.clip, 1 + args.clip)
            policy_loss = -torch.minimum(ratio * gain, clipped * gain).mean()
            value_loss = (agent.values(b["obs"]) - b["returns"]).square().mean()
            entropy = dist.entropy().sum(-1).mean()
            optimizer.zero_grad()
            (policy_loss + 0.5 * value_loss - args.entropy * entropy).backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 1.0)
            optimizer.step()


def train(args: Args) -> list[float]:
    """Train; return the mean return of the episodes that ended in each iteration."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # so small a network learns no faster with more
    envs = gymnasium.make_vec(args.task, num_envs=args.num_envs)
    agent = Agent(envs.single_observation_space.shape[0], envs.single_action_space.shape[0])
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    obs, _ = envs.reset(seed=args.seed)
    running, curve = np.zeros(args.num_envs), []
    for iteration in range(max(1, args.samples // (args.horizon * args.num_envs))):
        steps, finished, successes = [], [], []
        for _ in range(args.horizon):
            with torch.no_grad():
                dist = agent.dist(torch.from_numpy(obs))
                action = dist.sample()
            new, reward, terminated, truncated, infos = envs.step(action.numpy())
            done = terminated | truncated
            running += reward
            finished += running[done].tolist()
            if done.any():
                successes += infos["final_info"]["success"][done].tolist()
            running[done] = 0.0
            steps.append(
                {
                    "obs": torch.from_numpy(obs),
                    "next_obs": torch.from_numpy(last_of_episode(new, infos)),
                    "action": action,
                    "log_prob": dist.log_prob(action).sum(-1),
                    "reward": torch.from_numpy(reward).float(),
                    "terminated": torch.from_numpy(terminated).float(),
                    "done": torch.from_numpy(done).float(),
                }
            )
            obs = new
        batch = {key: torch.stack([step[key] for step in steps]) for key in steps[0]}
        agent.see(batch["obs"])
        update(args, agent, optimizer, batch)
        if finished:
            curve.append(float(np.mean(finished)))
            samples = (iteration + 1) * args.horizon * args.num_envs
            rate = float(np.mean(successes))
            print(f"{samples:8d} samples  return {curve[-1]:7.2f}  success {rate:.0%}", flush=True)
    envs.close()
    return curve


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description="PPO on a Gymnasium vector environment.")
    for name, value in vars(Args()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    train(Args(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
