"""What is written into a field of the simulation takes its precision."""

import mujoco
import pytest
import torch

from penspin_style.sim.sim import make_sim
from tests.support.toy import XML

MASK = torch.tensor([True, False, True])
IDS = torch.tensor([0, 2])
ROWS = torch.tensor([[0.25], [0.5]])  # float32


def sim():
    return make_sim(mujoco.MjModel.from_xml_string(XML), 3)


WRITES = {
    "a mask": lambda x: x.__setitem__(MASK, ROWS),
    "ids": lambda x: x.__setitem__(IDS, ROWS),
    "a part": lambda x: x[:, :1].__setitem__(MASK, ROWS),
    "whole numbers": lambda x: (x.__setitem__(IDS, 4 * ROWS.long()), x.__setitem__(IDS, ROWS)),
    "index_copy_": lambda x: x.index_copy_(0, IDS, ROWS),
    "index_add_": lambda x: x.index_add_(0, IDS, ROWS),
    "index_put_": lambda x: x.index_put_((IDS,), ROWS),
    "masked_scatter_": lambda x: x.masked_scatter_(MASK[:, None], ROWS),
    "scatter_": lambda x: x.scatter_(0, IDS[:, None], ROWS),
    "a slice": lambda x: x.__setitem__(slice(0, 3, 2), ROWS),
}


@pytest.mark.parametrize("way", WRITES)
def test_float32_is_written_into_the_float64_state(way):
    world = sim()
    assert world.data.qpos.dtype == torch.float64
    WRITES[way](world.data.qpos)
    assert world.get_state()[:, 1].tolist() == [0.25, 0.0, 0.5]  # after the time


def test_what_is_computed_from_a_field_is_a_plain_tensor():
    world = sim()
    for value in (world.data.qpos * 2, world.data.qpos.T, torch.cat((world.data.qpos,))):
        assert type(value) is torch.Tensor
    assert type(world.data.xpos) is torch.Tensor  # float32: nothing to convert


def test_values_of_another_shape_are_still_refused():
    with pytest.raises((RuntimeError, IndexError)):
        sim().data.qpos[MASK] = torch.zeros(4, 1)
