"""The faults of a run: counted, a bounded number of them dumped, and too many of them end it."""

import collections
import io
import pathlib
from collections.abc import Callable

import mujoco
import numpy as np
import torch

from penspin_style import storage
from penspin_style.env.env import Env
from penspin_style.env.faults import FaultRecord
from penspin_style.sim.sim import Fault
from penspin_style.system import ranks

WINDOW = 10
"""Iterations over which the share of faulty environments is taken."""
MAX_SHARE = 0.01
MAX_DUMPS = 16


class FaultyRunError(RuntimeError):
    """The run cannot go on with meaningful physics or numbers; exit code 3."""


class FaultWatch:
    """Looks at an environment's faults after every iteration."""

    def __init__(self, folder: pathlib.Path, num_envs: int) -> None:
        """Prepare.

        folder: where faulty states are dumped. num_envs: of all processes.
        """
        self.folder, self.num_envs = folder, num_envs
        self.recent: collections.deque[float] = collections.deque(maxlen=WINDOW)
        """Shares of faulty environments, of the last iterations."""
        self._dumps = len(list(folder.glob("*.npz")))

    def check(self, env: Env, iteration: int, say: Callable[[str], None]) -> dict[str, float]:
        """Count and dump the faults of this iteration; return all ranks' counts for the log.

        Raises:
            FaultyRunError: a buffer overflowed, or too many environments are faulty.
        """
        counts = env.faults.counts.tolist()
        env.faults.counts.zero_()
        records = env.faults.take() if any(counts) else []
        overflowing = sum(bool(record.code & Fault.OVERFLOW) for record in records)
        here = torch.tensor([*counts, len(records), overflowing], dtype=torch.int64)
        *counts, faulty, overflowing = ranks.total(here).tolist()
        out = {
            f"fault/{f.name.lower()}": float(c)
            for f, c in zip(Fault, counts, strict=True)
            if f.name
        }
        out["env/fault"] = float(faulty)
        self.recent.append(faulty / self.num_envs)
        try:
            for record in records[: max(0, MAX_DUMPS - self._dumps)]:
                self._dump(env, record, iteration)
        except OSError as error:
            say(f"warning: faulty state not written ({error})")
        if overflowing:
            raise FaultyRunError(f"a contact buffer overflowed: {env.sim.overflow_hint()}")
        share = sum(self.recent) / WINDOW
        if share > MAX_SHARE:
            raise FaultyRunError(
                f"{share:.1%} of the environments were faulty over {WINDOW} iterations "
                f"(limit {MAX_SHARE:.0%}){_kinds(records)}; states are in {self.folder}; a smaller "
                "timestep or stiffer solver settings may help"
            )
        return out

    def _dump(self, env: Env, record: FaultRecord, iteration: int) -> None:
        self.folder.mkdir(exist_ok=True)
        model = self.folder / "model.xml"
        if not model.exists():
            storage.write_file(model, env.task.spec().to_xml().encode())
        kind = "+".join(f.name or "" for f in record.code)
        content, integration = io.BytesIO(), int(mujoco.mjtState.mjSTATE_INTEGRATION)
        # another program's simulation has rows of its own
        is_ours = len(record.row) == mujoco.mj_stateSize(env.model, integration)
        row = record.row.cpu().numpy()
        np.savez(content, state=row, signature=integration if is_ours else 0)
        env_id = ranks.rank() * env.num_envs + record.env_id
        name = f"{iteration:08d}-env{env_id}-{kind}.npz"
        storage.write_file(self.folder / name, content.getvalue())
        self._dumps += 1


def _kinds(records: list[FaultRecord]) -> str:
    """Return which kinds of faults the records are of."""
    names = sorted({f.name or "" for record in records for f in record.code})
    return f", now {', '.join(names)}" if names else ""
