"""Take a robot skill the whole way: teacher, student, ONNX, robot, fine-tuning.

Importing this package imports neither torch nor warp: a robot's computer may have none. Import the
room you need, for example `penspin_style.deploy.bundle` or `penspin_style.env.env`.
"""

import os
import sys

# A second thread of torch's waits for work by spinning, a million times over if OpenMP is left
# alone. Where another process wants that core, an update of PPO then takes ten times as long;
# this bound costs a fifth of the update on an idle machine. GNU OpenMP reads it once, when torch
# loads.
_SPINS = "1000"

SPINS_UNBOUNDED = "torch" in sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & {
    *os.environ
}
"""Whether torch was loaded before us, so that its threads wait as OpenMP has it."""
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)

__version__ = "0.1.0"
