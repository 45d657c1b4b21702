"""The structured-config schemas that Hydra composes; `cfg/*.yaml` hold deviations, with reasons.

Every field is checked where it is defined: an illegal value is a ValueError that names the key, the
value and what is legal.
"""

import pathlib
from dataclasses import dataclass, field
from typing import Any

ACTIVATIONS = ("elu", "relu", "silu", "tanh")
PRETRAINED = pathlib.Path(__file__).resolve().parent / "pretrained"
"""Weights that come with the package, `pretrained:NAME`: `outputs/pretrained/NAME` of the
repository, of which a wheel holds those that defaults name."""
_SCHEME = "pretrained:"


def weights_folder(path: str) -> pathlib.Path:
    """Return the folder that a configuration names: from the current folder, or `pretrained:NAME`.

    Raises:
        ValueError: nothing of this NAME came with the package.
    """
    if not path.startswith(_SCHEME):
        return pathlib.Path(path)
    name = pathlib.PurePath(path.removeprefix(_SCHEME))
    folder = PRETRAINED / name
    if not name.parts or name.is_absolute() or ".." in name.parts or not folder.is_dir():
        raise ValueError(
            f"{path} is not a folder of {PRETRAINED}; the repository holds all that is trained, "
            "in outputs/pretrained: give the path of a copy"
        )
    return folder


def require(ok: bool, key: str, value: object, legal: str) -> None:
    """Raise a ValueError that names the key, the value and what is legal, unless all is well."""
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
        require(
            self.engine in ("auto", "mujoco", "warp"),
            "sim.engine",
            self.engine,
            "auto, mujoco or warp",
        )
        require(self.nthread >= 0, "sim.nthread", self.nthread, ">= 0")
        for key in ("nconmax", "njmax"):
            value = getattr(self, key)
            require(value is None or value > 0, f"sim.{key}", value, "> 0 or null")


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
    """Radius of the clipped value loss; null for none. In standard deviations with `value_norm`."""
    value_norm: bool = False
    """Learn returns as their running mean and deviation leave them, whatever their size."""
    entropy_coef: float = 0.0
    learning_rate: float = 3e-4
    target_kl: float | None = None
    """Adapt the learning rate to this KL from the policy that collected; null for a fixed rate.
    Above twice the target the rate falls by a factor of 1.5, below half of it it rises by 1.5."""
    kl_every: str = "iteration"
    """When the rate is adapted: `iteration`, once after the last pass, or `epoch`, after each."""
    min_learning_rate: float = 1e-5
    """Least rate that adaptation leads to."""
    max_learning_rate: float = 3e-3
    """Largest rate that adaptation leads to."""
    max_grad_norm: float = 1.0
    hidden: list[int] = field(default_factory=lambda: [128, 128])
    critic_hidden: list[int] = field(default_factory=lambda: [128, 128])
    encoders: dict[str, list[int]] = field(default_factory=dict)
    """Observation group -> widths of its encoder, the code's last. The codes join the teacher's
    group before `hidden`. A group of one feature (n, 3) is a cloud: its points pass the encoder one
    by one and the largest of each number stays. A group that the task does not observe is passed
    over, for ablations, and so is one with []; the policy's card lists what is read."""
    shared_critic: bool = False
    """A value head on the policy's last hidden layer instead of a network of its own."""
    activation: str = "elu"
    init_std: float = 0.8
    compile: bool = False
    """torch.compile of the loss. TorchRL's loss recompiles under it: measure before using it."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "ppo", "algo.name", self.name, "ppo")
        for key in ("horizon", "epochs", "num_minibatches"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), ">= 1")
        for key in ("gamma", "gae_lambda"):
            require(0 <= getattr(self, key) <= 1, f"algo.{key}", getattr(self, key), "in [0, 1]")
        for key in (
            "clip_coef",
            "learning_rate",
            "min_learning_rate",
            "max_learning_rate",
            "max_grad_norm",
            "init_std",
            "reward_scale",
        ):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for key in ("value_coef", "entropy_coef"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.{key}", value, "finite and >= 0")
        for key in ("value_clip", "target_kl"):
            value = getattr(self, key)
            require(value is None or 0 < value < float("inf"), f"algo.{key}", value, "> 0 or null")
        for key in ("hidden", "critic_hidden"):
            sizes = getattr(self, key)
            require(all(n >= 1 for n in sizes), f"algo.{key}", sizes, "a list of sizes >= 1")
        for group, sizes in self.encoders.items():
            legal = all(n >= 1 for n in sizes)
            require(legal, f"algo.encoders.{group}", sizes, "a list of sizes >= 1")
            require(group not in ("teacher", "critic"), "algo.encoders", group, "another group")
        top = self.max_learning_rate
        legal = f"at least algo.min_learning_rate, {self.min_learning_rate}"
        require(top >= self.min_learning_rate, "algo.max_learning_rate", top, legal)
        known = ("iteration", "epoch")
        require(self.kl_every in known, "algo.kl_every", self.kl_every, " or ".join(known))
        require(
            self.activation in ACTIVATIONS,
            "algo.activation",
            self.activation,
            ", ".join(ACTIVATIONS),
        )


@dataclass
class AugmentConfig:
    """What a student's pictures suffer in training. Zero switches off, for brightness `[1, 1]`."""

    shift: int = 2
    """Furthest shift in pixels, the same for all pictures of a sample."""
    brightness: list[float] = field(default_factory=lambda: [0.5, 1.5])
    """Range of the factor on colour, the same for all cameras of a sample."""
    noise: float = 0.03
    """Half width of uniform noise on colour, per pixel and channel."""
    depth_edge: float = 10.0
    """Pixels per metre, k: a pixel at a gradient g (m per pixel) is lost with p = atan(k g)."""
    depth_jitter: float = 0.5
    """Standard deviation in pixels of where a depth pixel looks, per axis."""
    depth_disparity: float = 351.3
    """Steps of disparity times metres, c: depth is c over a whole number, so d^2 / c apart."""
    depth_dropout: float = 0.006
    """Probability that a depth pixel returns nothing."""
    depth_lines: int = 16
    """Most lines in a depth picture; each has one at least."""
    depth_line_value: list[float] = field(default_factory=lambda: [0.08, 0.34])
    """Range of a line's depth in metres."""
    depth_blackout: float = 0.02
    """Probability that a whole depth picture is 0."""

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("shift", "noise", "depth_edge", "depth_jitter", "depth_disparity"):
            value = getattr(self, key)
            require(0 <= value < float("inf"), f"algo.augment.{key}", value, "finite and >= 0")
        lines = self.depth_lines
        require(0 <= lines < float("inf"), "algo.augment.depth_lines", lines, "finite and >= 0")
        for key in ("depth_dropout", "depth_blackout"):
            require(
                0 <= getattr(self, key) <= 1,
                f"algo.augment.{key}",
                getattr(self, key),
                "in [0, 1]",
            )
        for key in ("brightness", "depth_line_value"):
            value = list(getattr(self, key))
            legal = len(value) == 2 and 0 <= value[0] <= value[1] < float("inf")
            require(legal, f"algo.augment.{key}", value, "[low, high] with 0 <= low <= high")


@dataclass
class TemporalConfig:
    """The network of students without pictures (PenSpin, arXiv 2407.18902)."""

    recent: int = 3
    """Newest frames of the joints that pass by the transformer."""
    normalize_history: bool = True
    """Normalise the joints' history. Published: raw radians, whose changes of a tenth are small
    beside positions that are sines."""
    width: int = 32
    """Of the transformer's tokens."""
    heads: int = 2
    layers: int = 2
    feedforward: int = 2048
    """Width of the hidden layer of the transformer's perceptrons."""
    dropout: float = 0.1
    latent: int = 40
    """Numbers that the transformer makes of the history."""
    fingertips: list[int] = field(default_factory=lambda: [256, 128, 8])
    fingertip_noise: float = 0.01
    """Half width of uniform noise on normalised fingertips."""
    ends: list[int] = field(default_factory=lambda: [6, 6, 6])
    """Widths of the perceptron that looks at each end of the pen."""
    points: list[int] = field(default_factory=lambda: [32, 32, 32])
    """Widths of the perceptron that looks at each point of a cloud."""
    trunk: list[int] = field(default_factory=lambda: [512, 256, 128])

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("recent", "width", "heads", "layers", "feedforward", "latent"):
            require(getattr(self, key) >= 1, f"algo.temporal.{key}", getattr(self, key), ">= 1")
        require(self.width % 2 == 0, "algo.temporal.width", self.width, "even: sines and cosines")
        legal = self.width % self.heads == 0
        require(legal, "algo.temporal.heads", self.heads, f"a divisor of the width, {self.width}")
        require(0 <= self.dropout < 1, "algo.temporal.dropout", self.dropout, "in [0, 1)")
        noise = self.fingertip_noise
        legal = 0 <= noise < float("inf")
        require(legal, "algo.temporal.fingertip_noise", noise, "finite and >= 0")
        for key in ("fingertips", "ends", "points", "trunk"):
            sizes = getattr(self, key)
            legal = (bool(sizes) or key == "trunk") and all(n >= 1 for n in sizes)
            require(legal, f"algo.temporal.{key}", sizes, "a list of sizes >= 1")


@dataclass
class DistillConfig:
    """A student learns its teacher's actions: DAgger (Ross et al. 2011) or behaviour cloning."""

    name: str = "distill"
    teacher: str = "pretrained:panda_lift_cube"
    """Policy folder, or the run folder, of the teacher; see `weights_folder`."""
    group: str = "student"
    """The observation group that the student reads, its pictures included."""
    network: str = "pictures"
    """`pictures`: numbers and pictures of cameras. `temporal`: the history of a hand's joints."""
    driver: str = "student"
    """Who acts once `beta_iterations` are over. `student`: DAgger. `teacher`: it alone, always."""
    loss: str = "l2"
    """Distance to the label, summed over the action: `l2`, squared, or `l1`."""
    rollouts: str = ""
    """Folder of recorded roll-outs to clone; empty for DAgger."""
    horizon: int = 48
    """Steps per environment and iteration."""
    epochs: int = 4
    """Passes over the samples of an iteration; with a memory, as many updates from the memory."""
    minibatch_size: int = 256
    memory: int = 0
    """Samples of earlier iterations that are kept and learned from again; 0: each is used once."""
    beta_iterations: int = 1
    """Iterations over which the share of steps that the teacher drives falls from 1 to 0."""
    holdout: float = 0.07
    """Share of training episodes without an object; there the label is to do nothing."""
    learning_rate: float = 4e-4
    final_learning_rate: float = 4e-4
    """Reached linearly at the end of `total_samples`."""
    max_grad_norm: float = 1.0
    encoder: str = "pretrained:nature_cnn_cifar10"
    """Folder of the encoders' weights, see `weights_folder`; empty for random ones."""
    train_encoder: bool = False
    """Let the encoders learn too."""
    pool: bool = False
    """Average the encoders' last map (64 numbers) instead of reading it whole (1,024)."""
    layer_norm: bool = True
    """Normalise each colour picture's features. They are sparse and large (root mean square 12, up
    to 380), and without it the student learns several times slower."""
    latent: int = 64
    """Width of each picture's dense head."""
    depth_pixels: int = 8
    """Height and width to which depth pictures are sampled."""
    max_depth: dict[str, float] = field(default_factory=dict)
    """Camera -> metres beyond which depth counts as nothing; 2 where not given."""
    hidden: list[int] = field(default_factory=lambda: [256, 256, 256])
    activation: str = "relu"
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.name == "distill", "algo.name", self.name, "distill")
        for key, known in (
            ("network", ("pictures", "temporal")),
            ("driver", ("student", "teacher")),
            ("loss", ("l2", "l1")),
        ):
            value = getattr(self, key)
            require(value in known, f"algo.{key}", value, " or ".join(known))
        for key in ("horizon", "epochs", "minibatch_size", "latent", "depth_pixels"):
            require(getattr(self, key) >= 1, f"algo.{key}", getattr(self, key), ">= 1")
        for key in ("memory", "beta_iterations"):
            require(getattr(self, key) >= 0, f"algo.{key}", getattr(self, key), ">= 0")
        legal = not (self.rollouts and self.memory)
        require(legal, "algo.memory", self.memory, "0 where algo.rollouts is given")
        require(0 <= self.holdout < 1, "algo.holdout", self.holdout, "in [0, 1)")
        for key in ("learning_rate", "final_learning_rate", "max_grad_norm"):
            value = getattr(self, key)
            require(0 < value < float("inf"), f"algo.{key}", value, "finite and > 0")
        for camera, value in self.max_depth.items():
            require(value > 0, f"algo.max_depth.{camera}", value, "> 0")
        require(all(n >= 1 for n in self.hidden), "algo.hidden", self.hidden, "sizes >= 1")
        require(
            self.activation in ACTIVATIONS,
            "algo.activation",
            self.activation,
            ", ".join(ACTIVATIONS),
        )


ALGORITHMS: dict[str, Any] = {"ppo": PPOConfig, "distill": DistillConfig}
"""`algo=NAME` -> what can be set."""


@dataclass
class TrainConfig:
    """A training run."""

    task: Any = None
    """The task's own Config; `task=NAME` chooses it."""
    algo: Any = None
    """One of `ALGORITHMS`; `algo=NAME` chooses it, None is PPO as it is."""
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
    """End early once an evaluation reaches this success rate, of success at the end for a task that
    scores by it; null to use all samples."""
    checkpoint_every: int = 20
    """Iterations between two checkpoints."""
    keep_last: int = 3
    """Checkpoints kept besides the best one."""
    loggers: list[str] = field(default_factory=lambda: ["tensorboard", "csv"])
    """Among tensorboard, csv, wandb, swanlab, trackio, mlflow."""
    video: bool = True
    """Film one evaluation episode at the end."""
    resume: bool = False
    """Continue the run of this name from its newest good checkpoint, with its configuration."""
    resume_changes: list[str] = field(default_factory=list)
    """Keys that a resume may change, as `[algo.gamma]`; the change is noted in `changes.jsonl`. How
    long, where and how fast to go on needs no leave: see `run_folder.FREE`."""

    def __post_init__(self) -> None:
        """Check the values."""
        self.algo = self.algo or PPOConfig()
        for key in (
            "num_envs",
            "total_samples",
            "eval_episodes",
            "final_episodes",
            "checkpoint_every",
            "keep_last",
            "learn_threads",
        ):
            require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        require(self.eval_every >= 0, "eval_every", self.eval_every, ">= 0")
        for key in ("seed", "eval_seed"):
            require(getattr(self, key) >= 0, key, getattr(self, key), ">= 0")
        require(self.num_envs < 2**31, "num_envs", self.num_envs, "below 2**31")
        known = ("tensorboard", "csv", "wandb", "swanlab", "trackio", "mlflow")
        for name in self.loggers:
            require(name in known, "loggers", name, f"among {', '.join(known)}")
        legal = self.device in ("auto", "cpu", "cuda") or (
            self.device.startswith("cuda:") and self.device[5:].isdigit()
        )
        require(legal, "device", self.device, "auto, cpu, cuda or cuda:N")
        stop = self.stop_at_success
        require(stop is None or 0 < stop <= 1, "stop_at_success", stop, "in (0, 1] or null")
        allowed = self.resume_changes
        require(self.resume or not allowed, "resume_changes", allowed, "[] without resume=true")
        legal = self.name not in ("", ".", "..") and "/" not in self.name
        require(legal, "name", repr(self.name), "a folder name")
