"""The structured-config schemas that Hydra composes; `cfg/*.yaml` hold deviations, with reasons.

Those of tasks and algorithms stand in their files.

Every field is checked where it is defined: an illegal value is a ValueError that names the key, the
value and what is legal.
"""

import pathlib
import re
from dataclasses import dataclass, field
from typing import Any

ACTIVATIONS = ("elu", "relu", "silu", "tanh")
PRETRAINED = pathlib.Path(__file__).resolve().parent / "pretrained"
"""Weights that come with the package, `pretrained:NAME`: `outputs/pretrained/NAME` of the
repository, of which a wheel holds those that defaults name."""
_SCHEME = "pretrained:"
_RANGES = re.compile(r"\d{1,6}(-\d{1,6})?(,\d{1,6}(-\d{1,6})?)*")


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
    """`auto`: MuJoCo C on a CPU, Warp on a GPU. `mujoco` or `warp` to insist; `mjx` for JAX."""
    nthread: int = 0
    """Threads of the CPU engine; 0 for all cores."""
    nconmax: int | None = None
    """Contacts per environment that Warp makes room for; None lets it guess."""
    njmax: int | None = None
    """Constraints per environment that Warp makes room for; None lets it guess."""
    renderer: str = "auto"
    """What draws the images that a task observes: `auto` and `warp`, MuJoCo Warp's ray tracer;
    `madrona`, the package madrona_mjx, on a GPU and with `sim.engine=mjx`."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(
            self.engine in ("auto", "mujoco", "warp", "mjx"),
            "sim.engine",
            self.engine,
            "auto, mujoco, warp or mjx",
        )
        legal = ("auto", "warp", "madrona")
        require(self.renderer in legal, "sim.renderer", self.renderer, "auto, warp or madrona")
        require(self.nthread >= 0, "sim.nthread", self.nthread, ">= 0")
        for key in ("nconmax", "njmax"):
            value = getattr(self, key)
            require(value is None or value > 0, f"sim.{key}", value, "> 0 or null")


@dataclass
class StartsConfig:
    """Shares of the training episodes that begin elsewhere than the task says; see `env/starts.py`.

    The rest, and every evaluation, begins as the task says.
    """

    far: float = 0.0
    """In states from which the policy went on; the farthest along are preferred."""
    falls: float = 0.0
    """In states shortly before it failed."""
    bank: float = 0.0
    """In states of a bank, as along recorded trajectories."""
    states: str = ""
    """Folder of the bank, as `penspin search --bank` writes it; empty for the task's own."""
    rivals: int = 4
    """Candidates of which each draw takes the best."""
    capacity: int = 20_000
    """States kept of each kind; the oldest go."""
    fewest: int = 200
    """States of a kind from which it is used."""
    rate: float = 0.1
    """Odds at each control step that a running episode's state becomes a candidate."""
    decided: int = 40
    """Control steps after which a candidate, or an episode from a start, counts as a success."""
    least: float = 0.05
    """Progress that a candidate must have led to by then, in the task's unit."""
    before_fall: list[int] = field(default_factory=lambda: [20, 60])
    """Fewest and most control steps that a state of `falls` lies before the failure."""

    def __post_init__(self) -> None:
        """Check the values."""
        shares = (self.far, self.falls, self.bank)
        legal = "shares >= 0, at most 1 together"
        given = list(shares)
        require(min(shares) >= 0 and sum(shares) <= 1, "algo.starts", given, legal)
        for key in ("rivals", "capacity", "fewest", "decided"):
            require(getattr(self, key) >= 1, f"algo.starts.{key}", getattr(self, key), ">= 1")
        require(0 < self.rate <= 1, "algo.starts.rate", self.rate, "in (0, 1]")
        window = self.before_fall
        legal = "[fewest, most] control steps"
        require(
            len(window) == 2 and 0 < window[0] <= window[1],
            *("algo.starts.before_fall", window, legal),
        )

    @property
    def used(self) -> bool:
        """Whether any episode begins elsewhere."""
        return self.far + self.falls + self.bank > 0


@dataclass
class StallConfig:
    """When a training episode without progress ends; evaluations run on. See `Task.progress`."""

    steps: int = 0
    """Control steps without progress after which it ends; 0 for never."""
    least: float = 0.03
    """What counts as progress, in the task's unit."""
    fails: bool = True
    """Whether a stall is a failure, with nothing beyond it, or cuts the episode off like a time
    limit, so that its value is that of going on."""
    penalty: float = 0.0
    """Taken off the reward of the last step of a stall that fails."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.steps >= 0, "algo.stall.steps", self.steps, ">= 0")
        require(self.least > 0, "algo.stall.least", self.least, "> 0")
        require(self.penalty >= 0, "algo.stall.penalty", self.penalty, ">= 0")


@dataclass
class StageConfig:
    """A stage of a curriculum: changes of the world that the policy trains in."""

    task: dict[str, Any] = field(default_factory=dict)
    """Keys of the task, with their values in this stage."""
    samples: int = 0
    """Environment steps after which the next stage begins at the latest; 0 for no such limit."""
    until: float | None = None
    """Score of an evaluation, on the task as it is, from which the next stage begins; null: none.
    The last stage has no end of its own."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.samples >= 0, "curriculum.samples", self.samples, ">= 0")


@dataclass
class EvalConfig:
    """How the world that policies are evaluated in differs from the one that they learn in."""

    task: dict[str, Any] = field(default_factory=dict)
    """Keys of the task, with their values in every evaluation."""


@dataclass
class PlacementConfig:
    """Which processes do what, in RLinf's words: ranges as `0-7`, of which only the number counts.

    An environment's process runs the policy too, so `env` and `rollout` are the same ones; `actor`
    is the learner. Which machines they are on is Ray's business.
    """

    env: str = ""
    rollout: str = ""
    actor: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        key = "cluster.component_placement"
        for name in ("env", "rollout", "actor"):
            text = getattr(self, name)
            legal = not text or (_RANGES.fullmatch(text) is not None and bool(_places(text)))
            require(legal, f"{key}.{name}", text, "processes as 0-7, or empty")
        env, rollout = _places(self.env), _places(self.rollout)
        legal = f"{self.env}, as env: the process of an environment runs the policy"
        require(not (env and rollout) or env == rollout, f"{key}.rollout", self.rollout, legal)
        legal = "one process: torchrun divides the learning, see docs/howto/scaling.md"
        require(len(_places(self.actor)) <= 1, f"{key}.actor", self.actor, legal)

    @property
    def workers(self) -> int:
        """How many collect, 0 if nothing says so."""
        return len(_places(self.env or self.rollout))


def _places(text: str) -> set[int]:
    parts = [part.partition("-") for part in text.split(",") if part]
    return {k for low, _, high in parts for k in range(int(low), int(high or low) + 1)}


@dataclass
class ClusterConfig:
    """The processes of `launcher=ray`, and where Ray is."""

    env: int = 1
    """Workers that collect, each with `num_envs` environments."""
    learner: int = 1
    """Processes that learn: this one."""
    cpus: int = 1
    """CPUs that Ray reserves for a worker; threads of its physics where `sim.nthread=0`."""
    num_nodes: int = 1
    """Machines that must have joined Ray; over several, workers are spread."""
    component_placement: PlacementConfig = field(default_factory=PlacementConfig)
    address: str = ""
    """Of a Ray cluster, as HOST:6379 or `auto`; empty to start one on this machine alone."""
    object_store: int = 256
    """MiB of shared memory in which batches travel, where Ray is started here."""

    def __post_init__(self) -> None:
        """Check the values."""
        for key in ("env", "cpus", "num_nodes"):
            require(getattr(self, key) >= 1, f"cluster.{key}", getattr(self, key), ">= 1")
        legal = "1: torchrun divides the learning, see docs/howto/scaling.md"
        require(self.learner == 1, "cluster.learner", self.learner, legal)
        placed = self.component_placement.workers
        legal = f"{placed}, as cluster.component_placement says, or left out"
        require(not placed or self.env in (1, placed), "cluster.env", self.env, legal)
        legal = "1 without cluster.address: a Ray that is started here has this machine alone"
        require(
            self.num_nodes == 1 or bool(self.address), "cluster.num_nodes", self.num_nodes, legal
        )
        require(self.object_store >= 80, "cluster.object_store", self.object_store, ">= 80 (MiB)")

    @property
    def workers(self) -> int:
        """How many collect."""
        return self.component_placement.workers or self.env


@dataclass
class RolloutConfig:
    """How workers collect."""

    pipeline_stage_num: int = 1
    """1: in turns with learning. 2: the next batch is collected while one is learned from, by the
    policy from before that."""

    def __post_init__(self) -> None:
        """Check the values."""
        stages = self.pipeline_stage_num
        require(stages in (1, 2), "rollout.pipeline_stage_num", stages, "1 or 2")


@dataclass
class TrainConfig:
    """A training run."""

    task: Any = None
    """The task's own Config; `task=NAME` chooses it."""
    algo: Any = None
    """The algorithm's own Config; `algo=NAME` chooses it."""
    sim: SimConfig = field(default_factory=SimConfig)
    curriculum: list[StageConfig] = field(default_factory=list)
    """Worlds to train in, one after another; empty for the task as it is. Evaluations and the
    policy's card know only the task as it is."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """`eval.task.KEY=VALUE`: the task as it is evaluated, in the run and afterwards."""
    num_envs: int = 512
    device: str = "auto"
    """`cpu`, `cuda:N`, or `auto`: a GPU if there is one."""
    seed: int = 0
    name: str = "run"
    """The run lands in `<out>/<task>/<name>/`. `penspin train` names one that is not named by
    when it began, as 20261130-140514, and resumes the newest one of the task."""
    out: str = "outputs"
    total_samples: int = 2_000_000
    """Environment steps, summed over environments."""
    learn_threads: int = 2
    """Torch's threads while it learns; the weights' last bits depend on it. Roll-outs use one."""
    overlap: bool = False
    """Collect the next batch while the last one is learned from, with weights one update old; see
    `train/collection.py`."""
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
    """Write a video of one evaluation episode at the end."""
    video_every: int = 0
    """Evaluations between two videos while it trains, videos/<samples>.mp4; 0 for none."""
    video_tiles: int = 4
    """Environments of such a video, side by side,"""
    video_info: bool = True
    """with reward, success and end written into each."""
    video_fps: int | None = None
    """Images per second of such a video; null for as fast as the robot."""
    launcher: str = "local"
    """Who collects: `local`, this process (or torchrun's, each); `ray`, workers of `cluster`."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    resume: bool = False
    """Continue the run of this name from its newest good checkpoint, with its configuration."""
    resume_changes: Any = field(default_factory=list)
    """Keys that a resume may change, as `[algo.gamma]`, or `allow` for any; the change is noted in
    `changes.jsonl`. How long, where and how fast to go on needs no leave: see `run_folder.FREE`."""

    @property
    def collects_ahead(self) -> bool:
        """Whether batches are of the policy before the last update, collected during that."""
        return self.overlap or self.rollout.pipeline_stage_num > 1

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
            "video_tiles",
        ):
            require(getattr(self, key) >= 1, key, getattr(self, key), ">= 1")
        require(self.video_every >= 0, "video_every", self.video_every, ">= 0")
        videos = not self.video_every or self.eval_every >= 1
        require(videos, "video_every", self.video_every, "0 where eval_every=0")
        fps = self.video_fps
        require(fps is None or fps >= 1, "video_fps", fps, ">= 1, or null")
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
        require(self.launcher in ("local", "ray"), "launcher", self.launcher, "local or ray")
        for key, default in (("cluster", ClusterConfig()), ("rollout", RolloutConfig())):
            given = {k: v for k, v in vars(getattr(self, key)).items() if v != vars(default)[k]}
            said = ", ".join(f"{key}.{name}" for name in given)
            require(
                self.launcher == "ray" or not given, "launcher", self.launcher, f"ray for {said}"
            )
        allowed = self.resume_changes
        is_list = isinstance(allowed, list) and all(isinstance(key, str) for key in allowed)
        legal = "[KEY,...] or allow"
        require(is_list or allowed == "allow", "resume_changes", allowed, legal)
        require(self.resume or not allowed, "resume_changes", allowed, "[] without resume=true")
        legal = self.name not in ("", ".", "..") and "/" not in self.name
        require(legal, "name", repr(self.name), "a folder name")
        require(self.out != "", "out", repr(self.out), "a folder, as . for the current one")
