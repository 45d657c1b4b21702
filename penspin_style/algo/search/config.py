"""What `search.KEY` sets; `cfg/search/TASK.yaml` deviates from it, with reasons."""

import math
from dataclasses import dataclass, field

from penspin_style.config import require

METHODS = ("beam", "predictive_sampling", "mppi")


@dataclass
class SearchConfig:
    """Numbers of a search. Times are in control steps where they do not say seconds."""

    method: str = "beam"
    """Among beam, predictive_sampling, mppi; the latter two follow one plan."""
    beams: int = 8
    """States that the beam search keeps."""
    plans: int = 48
    """Plans that are drawn for each of them; all of them go to the one state of other methods."""
    horizon: int = 16
    """Of a plan's actions."""
    hold: int = 6
    """After them, in which the action is zero and the task must not terminate."""
    keep: int = 6
    """Of the best plan's actions that are carried out before plans are drawn anew."""
    knot: int = 4
    """Between two knots of the action, which is linear in between."""
    sigma: float = 0.4
    """Standard deviation of the knots' noise at first."""
    scale_range: list[float] = field(default_factory=lambda: [0.15, 2.5])
    """Least and most that `sigma` is multiplied with, so that about half of the plans survive."""
    per_parent: int = 3
    """States that may come from one of before, where there are more than two."""
    diversity: float = 0.12
    """Least Euclidean distance of two kept states' `qpos`, rad and m."""
    temperature: float = 0.02
    """Of MPPI, in units of the plans' values."""
    patience: int = 5
    """Advances that are taken back when no plan survives, each time with other draws."""
    retries: int = 3
    """How often that is done before the search ends early."""
    reward: dict[str, float] | None = None
    """Weight of each reward term, per second; null for `task.reward`."""
    progress: dict[str, float] = field(default_factory=dict)
    """Weight of what the task measures, summed over control steps; counts as reward."""
    cost: dict[str, float] = field(default_factory=dict)
    """Weight of each term of the task's `search_cost`, per second; 1 for those not named."""
    terminal: float = 0.0
    """What the last `terminal_steps` of a plan add to the weight of the costs, as a multiple."""
    terminal_steps: int = 3
    seconds: float | None = None
    """Length of a trajectory; null for an episode's."""
    stop_at_success: bool = False
    """End as soon as the state that is kept is a success."""
    checkpoint_every: int = 10
    """Advances between two checkpoints of an unfinished trajectory."""

    def __post_init__(self) -> None:
        """Check the values."""
        require(self.method in METHODS, "search.method", self.method, ", ".join(METHODS))
        for key in (
            *("beams", "plans", "horizon", "keep", "knot", "per_parent", "patience"),
            *("terminal_steps", "checkpoint_every"),
        ):
            require(getattr(self, key) >= 1, f"search.{key}", getattr(self, key), ">= 1")
        for key in ("hold", "retries", "diversity", "terminal"):
            require(getattr(self, key) >= 0, f"search.{key}", getattr(self, key), ">= 0")
        for key in ("sigma", "temperature"):
            value = getattr(self, key)
            require(0 < value < math.inf, f"search.{key}", value, "finite and > 0")
        require(self.plans >= 3, "search.plans", self.plans, ">= 3: two are the old one and none")
        require(self.keep <= self.horizon, "search.keep", self.keep, "at most search.horizon")
        low_high = self.scale_range
        legal = len(low_high) == 2 and 0 < low_high[0] <= low_high[1]
        require(legal, "search.scale_range", low_high, "[least, most] with 0 < least <= most")
        seconds = self.seconds
        legal = seconds is None or 0 < seconds < math.inf
        require(legal, "search.seconds", seconds, "finite and > 0, or null")
        for key in ("reward", "progress", "cost"):
            for name, weight in (getattr(self, key) or {}).items():
                require(math.isfinite(weight), f"search.{key}.{name}", weight, "finite")

    @property
    def num_envs(self) -> int:
        """Return the number of plans that are rolled out at once."""
        return self.beams * self.plans
