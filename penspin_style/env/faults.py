"""Which simulations went wrong, why and from which state; on the device, without a host sync."""

from typing import NamedTuple

import torch
from torch import Tensor

from penspin_style.sim.sim import Fault, Sim


class FaultRecord(NamedTuple):
    """One environment's fault: which, why, and the state that the faulty step started from."""

    env_id: int
    code: Fault
    row: Tensor


class FaultLog:
    """The first fault of every environment since it was last asked, and counts of all kinds.

    counts: (len(Fault),) long, faulty transitions by kind.
    """

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        device = sim.device
        self.counts = torch.zeros(len(Fault), dtype=torch.long, device=device)
        self.code = torch.zeros(sim.num_envs, dtype=torch.int32, device=device)
        self.row = torch.zeros_like(sim.get_state())
        self.others: list[FaultRecord] = []
        """Of environments that other processes have."""
        self._bits = torch.tensor([int(f) for f in Fault], dtype=torch.int32, device=device)

    def add(
        self, fault: Tensor, before: Tensor, *, action: Tensor, observation: Tensor, reward: Tensor
    ) -> None:
        """Note a step's faults.

        fault: (num_envs,) bool, all kinds together. action, observation, reward: the same of one.
        before: (num_envs, nstate) state that the step started from.
        """
        code = (
            self.sim.faults
            | action * int(Fault.ACTION)
            | observation * int(Fault.OBSERVATION)
            | reward * int(Fault.REWARD)
        ).to(torch.int32)
        self.sim.faults.zero_()
        self.counts += ((code[:, None] & self._bits) != 0).sum(dim=0)
        first = fault & (self.code == 0)
        self.code = torch.where(first, code, self.code)
        self.row = torch.where(first[:, None], before, self.row)

    def take(self) -> list[FaultRecord]:
        """Return a record per environment that was faulty since the last call; clear them."""
        others, self.others = self.others, []
        ids = self.code.nonzero().flatten().tolist()
        records = [FaultRecord(i, Fault(int(self.code[i])), self.row[i].clone()) for i in ids]
        self.code.zero_()
        return records + others

    def state_dict(self) -> dict[str, Tensor]:
        """Return every tensor, flat."""
        return {
            "fault_counts": self.counts.clone(),
            "_fault_code": self.code.clone(),
            "_fault_row": self.row.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue where `state_dict` was taken."""
        self.counts.copy_(state["fault_counts"])
        self.code.copy_(state["_fault_code"])
        self.row.copy_(state["_fault_row"])
