"""How the terms of a task are sensed: noise, delays, history, latency, and the cameras."""

from dataclasses import dataclass, field


@dataclass
class ObsTerm:
    """How one named term enters an observation group: noise, then delay, then history."""

    noise: float = 0.0
    """Half width of uniform noise, in the term's unit."""
    delay: tuple[int, int] = (0, 0)
    """Fewest and most control steps that the value arrives late; drawn per environment at reset."""
    history: int = 1
    """How many values are stacked, oldest first."""

    def __post_init__(self) -> None:
        """Make lists, as files hold them, equal to tuples."""
        self.delay = tuple(self.delay)  # type: ignore[assignment]  (checked by TaskConfig)


@dataclass
class Latency:
    """How late the terms of one group arrive, on top of their own delays."""

    weights: list[float] = field(default_factory=lambda: [0.857, 0.107, 0.0207, 0.0145])
    """Odds of 0, 1, 2, ... control steps; the default is that of MuJoCo Playground's ALOHA."""
    shared: bool = True
    """One draw for all terms of the group, or one for each."""
    every_step: bool = True
    """Draw again at every step, as published, or only at a reset."""


@dataclass
class Camera:
    """What one named camera of the model delivers: terms `<name>_rgb` and `<name>_depth`.

    An image is rendered only if some observation group lists its term.
    """

    height: int = 32
    width: int = 32
