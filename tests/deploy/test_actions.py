import numpy as np
import pytest
import torch

from penspin_style.deploy.actions import Decoder
from penspin_style.env.task import load_task
from penspin_style.env.world import World
from penspin_style.features import ActionChannel

HAND = [ActionChannel(f"j{i}", "rad", 1 / 24, -0.5585, 1.727825, "delta") for i in range(16)]
MIXED = [
    ActionChannel("x", "m", 0.25, -1.0, 1.0, "delta"),
    ActionChannel("grip", "1", 1.0, 2.0, 6.0, "absolute"),
]


def test_a_delta_adds_its_scale_and_an_absolute_action_spans_the_limits():
    decoder = Decoder(MIXED)
    assert decoder.decode(np.array([1.0, -1.0]), np.array([0.5, 3.0])).tolist() == [0.75, 2.0]
    assert decoder.decode(np.array([-0.5, 0.5]), np.array([0.5, 3.0])).tolist() == [0.375, 5.0]
    assert decoder.encode(np.array([0.375, 5.0]), np.array([0.5, 3.0])).tolist() == [-0.5, 0.5]


def test_targets_stay_within_the_limits_and_actions_within_one():
    decoder = Decoder(MIXED)
    assert decoder.decode(np.array([9.0, 9.0]), np.array([0.9, 3.0])).tolist() == [1.0, 6.0]
    assert decoder.encode(np.array([0.0, 9.0]), np.array([0.9, 3.0])).tolist() == [-1.0, 1.0]


def test_an_action_that_led_to_a_target_leads_there_again_bit_for_bit():
    rng, decoder = np.random.default_rng(0), Decoder(HAND)
    last = rng.uniform(-0.5, 1.7, (5000, 16))
    target = decoder.decode(rng.uniform(-1.0, 1.0, (5000, 16)), last)
    assert np.array_equal(decoder.decode(decoder.encode(target, last), last), target)


def test_targets_are_those_of_a_task_that_adds_up_float32_bit_for_bit():
    rng, decoder = torch.Generator().manual_seed(0), Decoder(HAND)
    low, high = torch.tensor(HAND[0].low), torch.tensor(HAND[0].high)
    target = torch.zeros(50, 16)
    mine = target.double().numpy()
    for _ in range(200):
        action = 4.0 * torch.rand(50, 16, generator=rng) - 2.0
        target.add_(action.clamp(-1.0, 1.0), alpha=1 / 24)
        torch.clamp(target, low, high, out=target)
        mine = decoder.decode(action.numpy(), mine)
        assert np.array_equal(mine.astype(np.float32), target.numpy())


def lift_targets(world):
    memory = world.task.memory
    return torch.cat((memory["target"], memory["opening"][:, None]), dim=1)


TARGETS = {
    "pen_spin": lambda world: world.task.memory["target"],
    "panda_lift_cube": lift_targets,
    "panda_pick_cube": lambda world: world.sim.data.ctrl,
    "panda_pick_cube_cartesian": lambda world: world.task.followed(world.sim),
    "aloha_handover": lambda world: world.sim.data.ctrl,
}


# the last three add in float64, which a robot's float32 targets differ from by their rounding
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("pen_spin", 0.0),
        ("panda_lift_cube", 0.0),
        ("panda_pick_cube", 1e-5),
        ("panda_pick_cube_cartesian", 1e-5),
        ("aloha_handover", 1e-5),
    ],
)
def test_targets_are_those_of_each_tasks_apply_action(name, most):
    kind, n = load_task(name), 5
    world = World(kind(kind.Config()), n, seed=3, nthread=1)
    decoder, rng = Decoder(world.task.actions), torch.Generator().manual_seed(0)

    def begin(mask):
        world.restart(mask)
        world.task.observe(world.sim)  # some tasks place their targets here
        return TARGETS[name](world).double().numpy().copy()

    mine, begun = begin(torch.ones(n, dtype=torch.bool)), 0
    for step in range(60):
        wild = 3.0 * torch.rand(n, len(decoder.channels), generator=rng) - 1.5
        world.begin(wild.clamp(-1.0, 1.0))  # an environment clips, and so does the decoder
        world.advance()
        mine = decoder.decode(wild.numpy(), mine)
        theirs = TARGETS[name](world).float().numpy()
        assert np.abs(mine.astype(np.float32) - theirs).max() <= most, step
        mask = torch.rand(n, generator=rng) < 0.1
        if mask.any():
            mine, begun = begin(mask), begun + int(mask.sum())
    assert begun > 10


def test_where_a_target_came_from_and_how_far_it_is():
    decoder = Decoder(MIXED)
    action, last = np.array([-0.5, 0.5]), np.array([0.5, 3.0])
    target = decoder.decode(action, last)
    assert decoder.origin(target, action).tolist() == [0.5, 2.0]
    assert decoder.steps(target, last).tolist() == [-0.5, 0.0]
    assert decoder.steps(np.array([1.0, 6.0]), last).tolist() == [2.0, 0.0]  # out of reach


@pytest.mark.parametrize(
    ("action", "complaint"),
    [
        (np.array([np.nan, 0.0]), "action of x is not finite"),
        (np.array([0.0, np.inf]), "action of grip is not finite"),
        (np.zeros(3), r"must be \(\.\.\., 2\) real numbers, got \(3,\)"),
        (np.array(["a", "b"]), "real numbers"),
        (np.zeros(2, complex), "real numbers"),
        (np.array(0.0), "real numbers"),
    ],
)
def test_what_is_no_action_is_refused_by_the_channels_name(action, complaint):
    with pytest.raises(ValueError, match=complaint):
        Decoder(MIXED).decode(action, np.zeros(2))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"mode": "relative"}, "mode 'relative' is not one of"),
        ({"low": 1.0}, "low 1.0 must be below high 1.0"),
        ({"high": float("nan")}, "must be below"),
        ({"scale": 0.0}, "scale must be positive"),
    ],
)
def test_an_invalid_channel_is_refused(change, complaint):
    fields = {**vars(MIXED[0]), **change}
    with pytest.raises(ValueError, match=complaint):
        Decoder([ActionChannel(**fields)])
