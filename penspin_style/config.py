"""The structured-config schemas that Hydra composes; `cfg/*.yaml` hold deviations, with reasons.

Every field is checked where it is defined: an illegal value is a ValueError that names the key, the
value and what is legal.
"""

from dataclasses import dataclass, field
from typing import Any


def _require(ok: bool, key: str, value: object, legal: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {legal}, got {value}")


@dataclass
class SimConfig:
    """How physics runs."""

    engine: str = "auto"
    """`auto`: MuJoCo C on a CPU, Warp on a GPU. `mujoco` or `warp` to insist."""
    nthread: int = 0
    """Threads of the CPU engine; 0 for all cores."""
    nconmax: int | None = None
    """Contacts per environment that Warp makes room for; None lets it guess."""
    njmax: int | None = None
    """Constraints per environment that Warp makes room for; None lets it guess."""

    def __post_init__(self) -> None:
        """Check the values."""
        _require(
            self.engine in ("auto", "mujoco", "warp"),
            "sim.engine",
            self.engine,
            "auto, mujoco or warp",
        )
        _require(self.nthread >= 0, "sim.nthread", self.nthread, ">= 0")
        for key in ("nconmax", "njmax"):
            value = getattr(self, key)
            _require(value is None or value > 0, f"sim.{key}", value, "> 0 or null")


@dataclass
class PPOConfig:
    """Proximal policy optimisation (Schulman et al. 2017)."""

    name: str = "ppo"
    horizon: int = 24
    """Steps per environment and iteration."""
    epochs: int = 4
    """Passes over the batch; minibatches are reshuffled in each."""
    num_minibatches: int = 4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    reward_scale: float = 1.0
    """Multiplies rewards before values are learned from them, so that returns are near 1 to 100."""
    clip_coef: float = 0.2
    value_coef: float = 1.0
    value_clip: float | None = None
    """Radius of the clipped value loss; null for none."""
    entropy_coef: float = 0.0
    learning_rate: float = 3e-4
    target_kl: float | None = None
    """Adapt the learning rate to this KL per iteration; null for a fixed rate."""
    max_grad_norm: float = 1.0
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    critic_hidden: list[int] = field(default_factory=lambda: [128, 128])
    activation: str = "elu"
    init_std: float = 0.8
    compile: bool = False
    """torch.compile of the loss. TorchRL's loss recompiles under it: measure before using it."""

    def __post_init__(self) -> None:
        """Check the values."""
        _require(self.name == "ppo", "algo.name", self.name, "ppo")
        for key in ("horizon", "epochs", "num_minibatches"):
            _require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), ">= 1")
        for key in ("gamma", "gae_lambda"):
            _require(0 <= getattr(self, key) <= 1, f"algo.{key}", getattr(self, key), "in [0, 1]")
        for key in ("clip_coef", "learning_rate", "max_grad_norm", "init_std", "reward_scale"):
            value = getattr(self, key)
            _require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for key in ("value_coef", "entropy_coef"):
            value = getattr(self, key)
            _require(0 <= value < float("inf"), f"algo.{key}", value, "finite and >= 0")
        for key in ("value_clip", "target_kl"):
            value = getattr(self, key)
            _require(value is None or 0 < value < float("inf"), f"algo.{key}", value, "> 0 or null")
        for key in ("hidden", "critic_hidden"):
            sizes = getattr(self, key)
            _require(all(n >= 1 for n in sizes), f"algo.{key}", sizes, "a list of sizes >= 1")
        _require(
            self.activation in ("elu", "relu", "silu", "tanh"),
            "algo.activation",
            self.activation,
            "elu, relu, silu or tanh",
        )


@dataclass
class TrainConfig:
    """A training run."""

    task: Any = None
    """The task's own Config; `task=NAME` chooses it."""
    algo: PPOConfig = field(default_factory=PPOConfig)
    sim: SimConfig = field(default_factory=SimConfig)
    num_envs: int = 512
    device: str = "auto"
    """`cpu`, `cuda:N`, or `auto`: a GPU if there is one."""
    seed: int = 0
    name: str = "run"
    """The run lands in `<out>/<task>/<name>/`."""
    out: str = "outputs"
    total_samples: int = 2_000_000
    """Environment steps, summed over environments."""
    learn_threads: int = 2
    """Torch's threads while it learns; the weights' last bits depend on it. Roll-outs use one."""
    stagger: bool = True
    """Begin with random episode ages, so that restarts spread evenly."""
    eval_every: int = 20
    """Iterations between two evaluations; 0 for none before the end."""
    eval_episodes: int = 100
    final_episodes: int = 500
    """Episodes of the last evaluation, whose score goes on the policy's card."""
    eval_seed: int = 1_000_003
    stop_at_success: float | None = None
    """End early once an evaluation reaches this success rate; null to use all samples."""
    checkpoint_every: int = 20
    """Iterations between two checkpoints."""
    keep_last: int = 3
    """Checkpoints kept besides the best one."""
    loggers: list[str] = field(default_factory=lambda: ["tensorboard", "csv"])
    """Among tensorboard, csv, wandb, swanlab, trackio, mlflow."""
    video: bool = True
    """Film one evaluation episode at the end."""
    resume: bool = False
    """Continue the run of this name from its newest good checkpoint."""

    def __post_init__(self) -> None:
        """Check the values."""
        for key in (
            "num_envs",
            "total_samples",
            "eval_episodes",
            "final_episodes",
            "checkpoint_every",
            "keep_last",
            "learn_threads",
        ):
            _require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        _require(self.eval_every >= 0, "eval_every", self.eval_every, ">= 0")
        for key in ("seed", "eval_seed"):
            _require(getattr(self, key) >= 0, key, getattr(self, key), ">= 0")
        _require(self.num_envs < 2**31, "num_envs", self.num_envs, "below 2**31")
        known = ("tensorboard", "csv", "wandb", "swanlab", "trackio", "mlflow")
        for name in self.loggers:
            _require(name in known, "loggers", name, f"among {', '.join(known)}")
        legal = self.device in ("auto", "cpu", "cuda") or (
            self.device.startswith("cuda:") and self.device[5:].isdigit()
        )
        _require(legal, "device", self.device, "auto, cpu, cuda or cuda:N")
        stop = self.stop_at_success
        _require(stop is None or 0 < stop <= 1, "stop_at_success", stop, "in (0, 1] or null")
        legal = self.name not in ("", ".", "..") and "/" not in self.name
        _require(legal, "name", repr(self.name), "a folder name")
