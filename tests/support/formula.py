"""A teacher that is a formula, and what a roll-out of its students leaves behind."""

import torch
from tensordict import TensorDict

from penspin_style.algo.distill import Distill
from penspin_style.algo.imitation import DistillConfig
from penspin_style.features import ActionChannel, Feature, Input, PolicyCard
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import save_policy

T, N, SIZE, NACTION = 5, 6, 4, 2
TEACHER = Input("teacher", (Feature("x", (3,), "m"),))
STUDENT = Input("student", (Feature("y", (SIZE,), "m"),))
BOTH = (TEACHER, STUDENT)
WEIGHT = torch.tensor([[0.5, -1.0, 0.25], [1.5, 0.5, 0.0]])
BIAS = torch.tensor([0.1, -0.3])
CPU = torch.device("cpu")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def taught(x):
    """What the teacher does, by hand: its normaliser has mean 0 and variance 1."""
    return torch.tanh((x / (1 + 1e-5) ** 0.5) @ WEIGHT.T + BIAS)


def actions(naction):
    return tuple(ActionChannel(f"a{i}", "m", 0.1, -1.0, 1.0, "delta") for i in range(naction))


ACTIONS = actions(NACTION)


def publish(folder, given=TEACHER, naction=NACTION):
    rng = seeded()
    policy = GaussianPolicy(
        given.name, given.size, naction, hidden=[], activation="elu", init_std=0.5, rng=rng
    )
    if (given.size, naction) == (3, NACTION):
        with torch.no_grad():
            policy.net[0].weight.copy_(WEIGHT)
            policy.net[0].bias.copy_(BIAS)
    card = PolicyCard("toy", (given,), actions(naction), (), 0.05, network=policy.describe())
    save_policy(policy, card, folder)
    return folder


def make(teacher, *, seed=0, inputs=BOTH, reads=("student",), iterations=10, **cfg):
    cfg = {"encoder": "", "hidden": [8], "horizon": T, "minibatch_size": 10, **cfg}
    return Distill(
        DistillConfig(teacher=str(teacher), **cfg),
        inputs,
        reads,
        NACTION,
        iterations=iterations,
        per_iteration=T * N,
        device=CPU,
        seed=seed,
    )


def root(seed=0, n=N):
    rng = seeded(seed)
    draw = {
        "teacher": torch.randn(n, 3, generator=rng),
        "student": torch.randn(n, 4, generator=rng),
    }
    return TensorDict({**draw, "fault": torch.zeros(n, 1, dtype=torch.bool)}, [n])


def collected(distill, seed=0, steps=T, *faults):
    """A batch [steps, N] as `rollout` leaves it; `faults` are (step, environment)."""
    batch = []
    for t in range(steps):
        td = distill.act(root(100 * seed + t))
        fault = torch.zeros(N, 1, dtype=torch.bool)
        for step, env in faults:
            fault[env] |= step == t
        td["next"] = TensorDict({"fault": fault, "reward": torch.full((N, 1), float(t))}, [N])
        batch.append(td)
    return torch.stack(batch)


def weights(distill):
    return torch.cat([p.detach().flatten() for p in distill.policy.parameters()])


def learn(distill, iterations, first=0):
    rows = []
    for k in range(first, first + iterations):
        distill.process(collected(distill, k))
        rows.append(distill.update())
    return rows


def close(a, b, atol=1e-6):
    torch.testing.assert_close(a, b, atol=atol, rtol=0.0)
