"""Algorithms by name, and what a run may begin from."""

import dataclasses
from importlib.metadata import EntryPoint

import pytest
import torch

from penspin_style.algo import registry
from penspin_style.algo.algorithm import Interface
from penspin_style.algo.imitation import DistillConfig
from penspin_style.algo.ppo import PPO, PPOConfig
from penspin_style.algo.registry import algorithm_names, find_algorithm, make_algorithm
from penspin_style.config import TrainConfig
from penspin_style.features import Feature, Input, PolicyCard
from penspin_style.nets.policy import save_policy
from penspin_style.train.compose import UsageError, compose_train
from tests.support.formula import ACTIONS, BOTH, CPU, TEACHER, publish, seeded

OWN = """
import dataclasses
from penspin_style.algo.ppo import PPO, PPOConfig
@dataclasses.dataclass
class Config(PPOConfig):
    name: str = "mine"
    extra: float = 2.5
    def __post_init__(self):
        pass
class Mine(PPO):
    Config = Config
ALGORITHM = Mine
"""


def test_an_algorithm_is_found_in_its_file():
    assert algorithm_names() == [
        "act",
        "clone",
        "ddpg",
        "diffusion",
        "distill",
        "grpo",
        "ppo",
        "sac",
    ]
    assert find_algorithm("ppo") is PPO
    with pytest.raises(ValueError, match="algo=pppo: there is no such algorithm; did you mean ppo"):
        find_algorithm("pppo")


def test_an_installed_package_brings_its_algorithm_and_what_can_be_set(tmp_path, monkeypatch):
    for name, text in (("own_algo", OWN), ("own_broken", "import nosuchlib"), ("own_wrong", "x=1")):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [
        EntryPoint(name, f"own_{module}", registry.ENTRY_POINTS)
        for name, module in (("mine", "algo"), ("broken", "broken"), ("wrong", "wrong"))
    ]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    names = [
        "act",
        "broken",
        "clone",
        "ddpg",
        "diffusion",
        "distill",
        "grpo",
        "mine",
        "ppo",
        "sac",
        "wrong",
    ]
    assert algorithm_names() == names
    cfg, _, text = compose_train(["algo=mine", "algo.extra=3"])
    assert (cfg.algo.name, cfg.algo.extra) == ("mine", 3.0) and "extra: 3.0" in text
    assert compose_train([])[0].algo.name == "ppo"  # the broken one is passed over
    with pytest.raises(UsageError, match="algo=broken cannot be imported: ModuleNotFoundError"):
        compose_train(["algo=broken"])
    with pytest.raises(UsageError, match="algo=wrong: own_wrong must bind ALGORITHM, a class"):
        compose_train(["algo=wrong"])


# What it begins from.


def trained(folder, given=TEACHER, **changes):
    """A published policy of PPO, with statistics of its own."""
    cfg = {"hidden": [8], "critic_hidden": [8], **changes}
    policy = PPO(PPOConfig(**cfg), (given,), len(ACTIONS), device=CPU, seed=5).policy
    normalizer = next(m for n, m in policy.named_modules() if n.endswith("normalizer"))
    normalizer.update(torch.randn(9, given.size, generator=seeded()))
    card = PolicyCard("toy", (given,), ACTIONS, (), 0.05, network=policy.describe())
    save_policy(policy, card, folder)
    return folder


ENV = Interface(BOTH, ACTIONS, 0.05, lambda name: (name,))


def begun(path, env=ENV, **changes):
    algo = PPOConfig(init_from=str(path), hidden=[8], critic_hidden=[8])
    return make_algorithm(TrainConfig(algo=algo, **changes), env, device=CPU, seed=0)


def test_ppo_begins_from_a_trained_policy_and_its_statistics(tmp_path):
    folder = trained(tmp_path / "policy")
    from_run, from_policy = begun(tmp_path), begun(folder)
    expected = PPO(PPOConfig(hidden=[8]), (TEACHER,), len(ACTIONS), device=CPU, seed=5).policy
    for made in (from_run, from_policy):
        state = made.policy.state_dict()
        assert float(state["normalizer.count"]) == 9
        weights = dict(expected.named_parameters())
        assert all(torch.equal(state[name], value) for name, value in weights.items())


def test_a_resumed_run_does_not_look_for_what_it_began_from(tmp_path):
    with pytest.raises(ValueError, match=r"algo\.init_from=.*gone holds no policy: train a"):
        begun(tmp_path / "gone")
    begun(tmp_path / "gone", resume=True)


def test_a_policy_of_another_shape_is_refused_by_what_differs(tmp_path):
    other = Input("teacher", (Feature("x", (4,), "m"),))
    channels = (ACTIONS[0], dataclasses.replace(ACTIONS[1], name="b"))
    for number, (folder, env, message) in enumerate(
        (
            (
                trained(tmp_path / "a", hidden=[16]),
                ENV,
                r"its network has hidden=\[16\], this one \[8\]",
            ),
            (trained(tmp_path / "b", activation="tanh"), ENV, "its network has activation=tanh"),
            (trained(tmp_path / "c", other), ENV, "it reads 'teacher', 4 numbers; the environment"),
            (trained(tmp_path / "d"), dataclasses.replace(ENV, actions=channels), "takes .*'b'"),
        )
    ):
        with pytest.raises(
            ValueError, match=rf"algo\.init_from=.* is of another shape: .*{message}"
        ) as caught:
            begun(folder, env)
        assert "\n" not in str(caught.value), number


def test_distillation_begins_from_a_student_of_its_shape(tmp_path):
    teacher = publish(tmp_path / "teacher")
    overrides = {"teacher": str(teacher), "encoder": "", "hidden": [8]}
    cfg = TrainConfig(algo=DistillConfig(**overrides))
    first = make_algorithm(cfg, ENV, device=CPU, seed=3).policy
    card = PolicyCard("toy", (BOTH[1],), ACTIONS, (), 0.05, network=first.describe())
    save_policy(first, card, tmp_path / "student")
    cfg = TrainConfig(algo=DistillConfig(**overrides, init_from=str(tmp_path / "student")))
    again = make_algorithm(cfg, ENV, device=CPU, seed=4).policy
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    cfg = TrainConfig(algo=DistillConfig(**overrides, init_from=str(teacher)))
    with pytest.raises(ValueError, match=r"is of another shape: its network has kind=gaussian"):
        make_algorithm(cfg, ENV, device=CPU, seed=0)
