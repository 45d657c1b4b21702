"""Spin a pen knowing only what the hand knows: joints, targets, fingertips from the joints.

**Success**: as in `pen_spin`, half a turn about +z.

The world, the teacher's groups and the metrics are `pen_spin`'s; joints are measured worse. The
group `student` is on one time base: the last 30 frames of measured joints and targets, and whatever
else the student is given, all `lag` control steps late, as the teacher's three frames are. The
newest frames of that history are what a policy without memory would see.

`reads` chooses the student's inputs, as published: `proprio` and `fingertips` always help
themselves; `pen_ends` are the pen's two ends by camera, `tactile` the 32 channels, `pen_points` the
point cloud.
"""

from dataclasses import dataclass, field

from penspin_style.env.task import ObsTerm
from tasks.pen import shapes
from tasks.pen.spin import PenConfig, PenTask

HISTORY = 30
READS = {"proprio": HISTORY, "fingertips": 1, "pen_ends": 3, "tactile": HISTORY, "pen_points": 1}
"""What a student may be given -> how many frames of it."""


@dataclass
class Config(PenConfig):
    """Numbers of the student's task."""

    joint_noise: list[float] = field(default_factory=lambda: [0.02, 0.01])
    scales: list[float] = field(default_factory=lambda: [0.29])
    reads: list[str] = field(default_factory=lambda: ["proprio", "fingertips"])
    """What the student is given; `proprio` first."""
    ends_noise: float = 0.29 * shapes.RADIUS
    """Half width of the noise on the pen's ends, m: the pen's own radius; upstream took 40 mm."""

    def __post_init__(self) -> None:
        """Refuse inputs that do not exist."""
        if not self.reads or self.reads[0] != "proprio" or len(set(self.reads)) < len(self.reads):
            raise ValueError(f"task.reads must begin with proprio, each once, got {self.reads}")
        if unknown := sorted(set(self.reads) - set(READS)):
            raise ValueError(f"task.reads has {unknown}, there are {sorted(READS)}")
        super().__post_init__()

    def published(self) -> dict[str, dict[str, ObsTerm]]:
        """Return the teacher's groups, for the labels, and the student's."""
        late = (self.lag, self.lag)
        student = {name: ObsTerm(delay=late, history=READS[name]) for name in self.reads}
        if "pen_ends" in student:
            student["pen_ends"].noise = self.ends_noise
        return {**super().published(), "student": student}


class PenSpinStudent(PenTask[Config]):
    """See the module's docstring."""

    Config = Config


NAME = "pen_spin_student"
TASK = PenSpinStudent
