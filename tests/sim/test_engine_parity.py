"""The programme that follows a task on two engines: what it compares, and from where."""

import pytest
import torch

from penspin_style.sim.batch_sim import BatchSim
from penspin_style.sim.warp_sim import WarpSim
from scripts.engine_parity import compare, contacts, difference, make
from tests.support import scenes


def test_contacts_of_two_bodies_are_counted_alike_on_both_engines():
    """A box that lies on the floor has four corners there; one in the air none."""
    sims = [BatchSim(scenes.panda(), 2, nthread=1), WarpSim(scenes.panda(), 2, "cpu")]
    for sim in sims:
        sim.data.qpos[1, -5] += 0.5
        sim.forward()
        sim.step(60)
        sim.data.qpos[1, -5] = 0.5
        sim.forward()
        assert contacts(sim, ("box", "world")).tolist() == [4, 0]
        assert contacts(sim, ("box", "hand")).tolist() == [0, 0]


def test_only_the_chosen_environments_are_compared_and_nothing_moves_where_it_is_still():
    one, other = (make("panda_pick_cube", "mujoco", 3, seed=3, bank=True) for _ in range(2))
    assert torch.equal(one.sim.data.qpos, other.sim.data.qpos)
    assert one.sim.data.qpos[:, 9].max() < 0.65  # x of the box, at the keyframes
    other.sim.data.qpos[2, 0] += 0.25
    other.sim.forward()
    assert difference("qpos", one.sim, other.sim) == pytest.approx(0.25)
    kept = torch.tensor([True, True, False])
    seen = []
    [worst] = compare(
        [one], other, 2, seed=0, rows=kept, still=True, after_step=lambda: seen.append(1)
    )
    assert worst["qpos"] == 0.0 and seen == [1, 1]
    held = other.sim.data.ctrl.clone()
    compare([one], other, 1, seed=0, still=True)
    assert torch.equal(other.sim.data.ctrl, held)
