"""What a check finds: one line each."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["fault", "note"]
UNITS = {"m": 1.0, "cm": 0.01, "inch": 0.0254, "mm": 0.001}
"""Metres in each unit."""
SMALLEST, LARGEST = 0.005, 1.0
"""Metres of the longest side of what an arm handles; another size is taken for another unit."""
MAX_HOLE = 0.05
"""Share of the surface that may be made up to close it, unless said otherwise."""
MAX_FACES = 200_000
"""Faces of an STL file that MuJoCo takes."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (`fault`) or worth knowing (`note`)."""

    level: Level
    kind: str
    """What it is, one word or two: the same in every report."""
    what: str
    """How much of it, and where."""
    in_mujoco: str
    """What MuJoCo would make of it."""
    remedy: str

    def line(self) -> str:
        """Return it as one line."""
        in_mujoco = f"MuJoCo {self.in_mujoco}" if self.in_mujoco else ""
        parts = (f"{self.kind}: {self.what}", in_mujoco, self.remedy)
        return f"{self.level:5} " + "; ".join(part for part in parts if part)

    def facts(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return dataclasses.asdict(self)


def unit_finding(size: float, unit: str | None) -> Finding | None:
    """Return what is odd about a longest side of `size` m, the unit being given or taken as m."""
    if SMALLEST <= size <= LARGEST:
        return None
    likely = [
        name
        for name, metres in UNITS.items()
        if unit is None and name != "m" and SMALLEST <= size * metres <= LARGEST
    ]
    if likely:
        sizes = " or ".join(f"{1000 * size * UNITS[name]:.3g} mm with {name}" for name in likely)
        remedy = f"--unit says in what it is: {sizes}"
        kind = "millimetres" if "mm" in likely else "units"
    else:
        remedy = "scale it in the program that wrote it, or give its --unit"
        kind = "units"
    what = f"{size:.4g} m long" + (f" with --unit {unit}" if unit else " if it is in metres")
    grown = "takes it without a word: mass grows with the cube of the size"
    lost = "refuses it, or finds its mass too small"
    return Finding("fault", kind, what, grown if size > LARGEST else lost, remedy)
