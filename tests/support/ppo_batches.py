"""A small PPO, and random batches for it as `rollout` leaves them."""

import torch
from tensordict import TensorDict

from penspin_style.algo.ppo import PPO, PPOConfig
from penspin_style.features import Feature, Input

T, N, SIZE, CRITIC_SIZE, NACTION = 7, 6, 3, 4, 2
TEACHER = Input("teacher", (Feature("x", (SIZE,)),))
CRITIC = Input("critic", (Feature("y", (CRITIC_SIZE,)),))
CPU = torch.device("cpu")


def make(*, seed=0, inputs=(TEACHER, CRITIC), naction=NACTION, **cfg):
    cfg = {"hidden": [8], "critic_hidden": [8], "horizon": T, **cfg}
    return PPO(PPOConfig(**cfg), inputs, naction, device=CPU, seed=seed)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed))


def collected(ppo, seed=0, ends=0.2):
    """A batch [T, N] as `rollout` leaves it: random observations, rewards and flags."""
    rng = seeded(seed)
    size = torch.Size([T, N])

    def observation():
        return {
            "teacher": torch.randn(T, N, SIZE, generator=rng),
            "critic": torch.randn(T, N, CRITIC_SIZE, generator=rng),
        }

    def flag(probability):
        return torch.rand(T, N, 1, generator=rng) < probability

    td = TensorDict(observation(), size)
    ppo.act(td.view(-1))
    batch = ppo.act(td)
    terminated, fault = flag(ends), torch.zeros(T, N, 1, dtype=torch.bool)
    truncated = flag(ends)
    batch["next"] = TensorDict(
        {
            **observation(),
            "reward": torch.randn(T, N, 1, generator=rng),
            "terminated": terminated,
            "truncated": truncated,
            "done": terminated | truncated,
            "fault": fault,
        },
        size,
    )
    return batch


def spoil(batch, *where):
    """Make transitions faulty, as the environment does."""
    nxt = batch["next"]
    for t, n in where:
        for key in ("fault", "truncated", "done"):
            nxt[key][t, n] = True
        nxt["terminated"][t, n] = False
    return batch


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=0.0)


def gradients(ppo, mb):
    for net in (ppo.policy, ppo.critic):
        net.zero_grad()
    loss, metrics = ppo._losses(mb)
    loss.backward()
    grads = [p.grad.clone() for net in (ppo.policy, ppo.critic) for p in net.parameters()]
    return loss.detach(), metrics, torch.cat([g.flatten() for g in grads])


# A minibatch whose losses and metrics are worked out by hand.

RATIO = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 9.0])
ADVANTAGE = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 5.0])
WEIGHT = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
MOVED = torch.tensor([0.1, 0.3, -0.25, 0.05, 0.0, 7.0])  # V - V_old
MISSED = torch.tensor([1.0, 2.0, -1.0, 0.5, -0.5, 9.0])  # V - target


def crafted(ppo):
    """A minibatch with the ratios, advantages and values above."""
    n = len(RATIO)
    td = TensorDict(
        {"teacher": randn(n, SIZE), "critic": randn(n, CRITIC_SIZE), "action": randn(n, 2)}, [n]
    )
    with torch.no_grad():
        dist, value = ppo.policy(td["teacher"]), ppo.critic(td["critic"])
    td["log_prob"] = dist.log_prob(td["action"]) - RATIO.log()
    td["loc"] = dist.loc + 0.3
    td["scale"] = dist.scale * 1.2
    td["advantage"] = ADVANTAGE[:, None].clone()
    td["state_value"] = value - MOVED[:, None]
    td["value_target"] = value - MISSED[:, None]
    td["weight"] = WEIGHT[:, None].clone()  # tests write into it
    return td, dist
