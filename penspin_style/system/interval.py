"""How sure a share is that was counted."""

import math

Z = 1.959964
"""Standard deviations of a normal distribution that 95 % lie within."""


def wilson(rate: float, n: int, z: float = Z) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion (Wilson 1927); z for 95 % by default.

    rate: of n; of none at all, nothing is known: 0 to 1.
    """
    if not n:
        return 0.0, 1.0
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
