"""`World.snapshot` and `restore`: worlds go on from each other's states, bit for bit."""

import pytest
import torch

import tasks
from penspin_style.env.task import load_task
from penspin_style.env.world import World
from tests.support import rail, toy


def world(kind=toy, n=4, seed=0, **config):
    made = World(kind.TASK(kind.Config(**config)), n, seed=seed, nthread=1)
    made.restart(torch.ones(n, dtype=torch.bool))
    return made


def step(world, action):
    world.begin(action)
    world.advance()
    return world.finish(action)


def test_a_world_goes_on_from_a_row_as_that_one_did_with_what_its_task_remembers():
    a, b = world(rail, start=0.3), world(rail, n=2, seed=5)
    actions = torch.tensor([[0.5], [-0.5], [1.0], [0.2]])
    step(a, actions)
    kept = a.snapshot()
    step(a, actions)
    b.restore(kept, torch.tensor([2, 0]))
    assert torch.equal(b.task.memory["target"], kept["memory/target"][[2, 0]])
    step(b, actions[[2, 0]])
    assert torch.equal(b.sim.get_state(), a.sim.get_state()[[2, 0]])


def test_a_snapshot_is_not_changed_by_what_follows():
    a = world(rail, start=0.3)
    kept = a.snapshot()
    before = {name: value.clone() for name, value in kept.items()}
    step(a, torch.ones(4, 1))
    assert all(torch.equal(kept[name], before[name]) for name in before)


def test_the_models_parameters_and_what_follows_from_them_travel_too():
    a, b = world(), world(seed=1)
    mass = a.sim.params.body_mass[:, 1].clone()
    assert (mass != b.sim.params.body_mass[:, 1]).all()
    b.restore(a.snapshot(), torch.tensor([3, 3, 1, 0]))
    assert torch.equal(b.sim.params.body_mass[:, 1], mass[[3, 3, 1, 0]])
    for w in (a, b):  # the table's pushes are drawn by step, not by world: without them
        w.randomizer._entries = []
    actions = torch.tensor([[0.1], [0.2], [0.3], [0.4]])
    step(a, actions)
    step(b, actions[[3, 3, 1, 0]])
    assert torch.equal(b.sim.get_state(), a.sim.get_state()[[3, 3, 1, 0]])


@pytest.mark.parametrize("kind", [toy, rail])
def test_worlds_outside_the_mask_stand_still_and_the_others_go_on_as_ever(kind):
    masked, free = world(kind), world(kind)
    action = torch.full((4, 1), 0.7)
    mask = torch.tensor([True, False, True, False])
    before = masked.sim.data.qpos.clone()
    for w in (masked, free):
        w.begin(action)
    masked.advance(mask=mask)
    free.advance()
    assert torch.equal(masked.sim.data.qpos[mask], free.sim.data.qpos[mask])
    assert torch.equal(masked.sim.data.qpos[~mask], before[~mask])
    assert masked.sim.data.time.tolist() == pytest.approx([0.05, 0.0, 0.05, 0.0])


@pytest.mark.parametrize("name", tasks.task_names())
def test_every_task_keeps_what_it_needs_in_its_memory_and_goes_on_the_same_twice(name):
    kind = load_task(name)
    made = World(kind(kind.Config(randomize=False)), 2, nthread=1)
    made.restart(torch.ones(2, dtype=torch.bool))
    begun, rng = made.snapshot(), made.rng.get_state()
    action = torch.full((2, len(made.task.actions)), 0.3)

    def ends():
        made.rng.set_state(rng)
        for _ in range(2):
            step(made, action)
        return made.snapshot()

    first = ends()
    made.restore(begun)
    second = ends()
    assert all(torch.equal(first[key], second[key]) for key in first)
