"""Plans: knots, the actions between them, and how new plans are drawn; all derived by hand."""

import torch

from penspin_style.algo.search.knots import LIMIT, Sampler, interpolate, knot_count, shift


def one(*values):
    """A plan of one action with these knots, (1, knots, 1)."""
    return torch.tensor(values, dtype=torch.float32).view(1, -1, 1)


def drawn(n=600, proposal=None, limbs=((0, 1), (2, 3))):
    """Plans drawn around half: n of three knots and four actions, none first or second."""
    plans = torch.full((n, 3, 4), 0.5)
    rank = torch.full((n,), 2)
    rng = torch.Generator().manual_seed(1)
    return Sampler(4, limbs).draw(plans, torch.full((n,), 0.1), rank, proposal, rng)


def test_actions_are_linear_between_knots_and_zero_while_the_plan_holds():
    actions = interpolate(one(0.0, 1.0, -1.0), 4, 2, hold=2)
    assert actions.shape == (6, 1, 1)
    assert actions.flatten().tolist() == [0.0, 0.5, 1.0, 0.0, 0.0, 0.0]


def test_knots_cover_every_action_and_one_more_ends_the_last_line():
    assert [knot_count(horizon, 4) for horizon in (1, 4, 5, 16)] == [2, 2, 3, 5]
    assert interpolate(one(0.0, 0.4, 0.8), 5, 4, 0).flatten().tolist()[-1] == torch.tensor(0.4)


def test_a_knot_beyond_one_keeps_the_action_at_one_for_longer():
    actions = interpolate(one(0.8, 1.2, 0.8), 8, 4, 0).flatten()
    torch.testing.assert_close(actions, torch.tensor([0.8, 0.9, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9]))


def test_a_plan_is_the_same_when_it_is_seen_later_and_then_does_nothing():
    plan = one(0.0, 1.0, -1.0, 0.5)
    assert shift(plan, 2, 2).flatten().tolist() == [1.0, -1.0, 0.5, 0.0]
    assert shift(plan, 1, 2).flatten().tolist() == [0.5, 0.0, -0.25, 0.0]
    assert shift(plan, 8, 2).flatten().tolist() == [0.0] * 4
    later = interpolate(shift(plan, 2, 2), 4, 2, 0)
    assert torch.equal(later, interpolate(plan, 6, 2, 0)[2:])


def test_the_first_plan_stays_as_it_is_and_the_second_is_zero():
    plans = torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))
    rng = torch.Generator().manual_seed(1)
    new = Sampler(2, ()).draw(plans, torch.ones(3), torch.arange(3), None, rng)
    assert torch.equal(new[0], plans[0])
    assert not new[1].any()
    assert (new[2] != plans[2]).any()


def test_some_plans_move_one_limb_alone_others_all_of_them():
    moved = (drawn() != 0.5).any(dim=1)
    for only in ([True, True, False, False], [False, False, True, True]):
        assert (moved == torch.tensor(only)).all(dim=1).float().mean() > 0.08
    assert moved.all(dim=1).float().mean() > 0.3


def test_some_plans_go_where_the_task_proposes_with_part_of_the_limbs():
    goal = torch.tensor([-0.9, -0.8, 0.9, 0.8]).expand(600, 4)
    near = (drawn(proposal=goal) - goal[:, None]).abs().amax(dim=1) < 0.3
    shares = torch.stack([near[:, :2].all(dim=1), near[:, 2:].all(dim=1)]).float().mean(dim=1)
    assert ((shares > 0.03) & (shares < 0.25)).all()
    assert not near.all(dim=1).any()  # one of two limbs: never both


def test_knots_stay_within_their_limit():
    plans = torch.full((50, 3, 2), 1.0)
    rng = torch.Generator().manual_seed(0)
    new = Sampler(2, ()).draw(plans, torch.full((50,), 9.0), torch.full((50,), 2), None, rng)
    assert new.abs().max() == torch.tensor(LIMIT)


def test_the_same_seed_draws_the_same_plans():
    assert torch.equal(drawn(), drawn())
