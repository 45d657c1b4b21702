"""The states in which both arms have lifted what they hold, from which an insertion may begin."""

import pathlib

import torch
from torch import Tensor

from penspin_style.env.start_bank import read_bank
from penspin_style.sim.sim import Sim
from tasks.robots.aloha.keyframes import KEYFRAMES

SCRIPTED = "scripted"
"""Name of the states that come with the task, at the switch of scripted picks."""
_BANK = pathlib.Path(__file__).parents[1] / "assets" / "preinsertion"
SIZE = 10
"""States kept of each environment."""


class Ring:
    """The last states, positions and commands, that each environment was in at the switch.

    A task puts `memory` among its own: checkpoints hold it, and resets leave it alone.
    """

    def __init__(self, sim: Sim, bank: str = "") -> None:
        """Fill it with the published keyframe `preinsert`, or with states of a bank.

        bank: its folder, or `SCRIPTED`; empty for none.

        Raises:
            ValueError: the bank's rows are not states of this world.
            DamagedError: the bank is missing or damaged.
        """
        model, n = sim.model, sim.num_envs
        width = model.nq + model.nu
        if bank:
            rows = _read(bank, model.nq, model.nv, model.nu).to(sim.data.qpos)
            # the environments share what there is: each begins elsewhere in it
            pick = torch.arange(n * SIZE, device=sim.device) % len(rows)
            states = rows[pick].view(n, SIZE, width)
        else:
            state = [x for part in KEYFRAMES["insertion"]["preinsert"] for x in part]
            states = sim.data.qpos.new_tensor(state).expand(n, SIZE, width).clone()
        head = torch.zeros(n, dtype=torch.long, device=sim.device)
        self.memory = {"ring": states, "ring_head": head}

    def push(self, sim: Sim, mask: Tensor) -> None:
        """Put the present states of the masked environments in; the oldest ones go."""
        states, head = self.memory["ring"], self.memory["ring_head"]
        envs = torch.arange(len(head), device=head.device)
        now = torch.cat((sim.data.qpos, sim.data.ctrl), dim=1)
        states[envs, head] = torch.where(mask[:, None], now, states[envs, head])
        head.add_(mask).remainder_(SIZE)

    def draw(self, rng: torch.Generator) -> Tensor:
        """Return one of each environment's states, (num_envs, nq + nu)."""
        states = self.memory["ring"]
        slot = torch.randint(SIZE, (len(states),), generator=rng, device=states.device)
        return states[torch.arange(len(states), device=states.device), slot]


def _read(bank: str, nq: int, nv: int, nu: int) -> Tensor:
    """Return positions and commands, (n, nq + nu), of rows of the task's `start_state`."""
    rows = read_bank(_BANK if bank == SCRIPTED else pathlib.Path(bank))
    if rows.shape[1] != nq + nv + nu + 1:
        raise ValueError(
            f"task.preinsertion={bank}: its rows have {rows.shape[1]} numbers, not the "
            f"{nq + nv + nu + 1} of aloha_peg_insertion's start states"
        )
    return torch.cat((rows[:, :nq], rows[:, nq + nv : nq + nv + nu]), dim=1)
