"""Rounds: groups of environments that begin alike, and after so many steps all begin anew.

What a group-relative algorithm compares is several episodes from one state, in one world. An
episode that ends sooner than its round begins again apart, until the round is over for all.
"""


class Rounds:
    """Where the environments are in their round.

    size: environments of a group, consecutive ones. steps: of a round; 0: there are none.
    """

    def __init__(self, size: int, steps: int) -> None:
        self.size, self.steps, self.step = size, steps, 0

    @classmethod
    def make(cls, groups: tuple[int, int] | None, num_envs: int, episode_length: int) -> "Rounds":
        """Return the rounds of (size, steps), 0 steps for whole episodes; none of None.

        Raises:
            ValueError: the groups do not divide the environments; an episode has fewer steps.
        """
        if groups is None:
            return cls(1, 0)
        size, steps = groups[0], groups[1] or episode_length
        if size < 1 or num_envs % size:
            raise ValueError(
                f"groups of {size} do not divide {num_envs} environments; choose num_envs as a "
                "multiple of the group's size"
            )
        if not 1 <= steps <= episode_length:
            raise ValueError(
                f"rounds of {steps} steps: an episode has 1 to {episode_length} "
                "(task.episode_length)"
            )
        return cls(size, steps)

    def advance(self) -> bool:
        """Count a control step; return whether the round is over."""
        self.step += bool(self.steps)
        return bool(self.steps) and self.step >= self.steps

    def begin(self) -> bool:
        """Note that episodes begin; return whether all do, in a new round."""
        if self.is_amid:
            return False
        self.step = 0
        return bool(self.steps)

    @property
    def is_amid(self) -> bool:
        """Whether only episodes that have ended early can begin now."""
        return 0 < self.step < self.steps
