"""The shapes of reward terms at the points where they can be worked out."""

import math

import pytest
import torch

from penspin_style.env.env import Env
from penspin_style.env.rewards import RunningMax, near, progress, tolerance
from tests.support.rail import Config, Rail


def values(function, *points):
    return function(torch.tensor(points)).tolist()


def test_near_is_one_at_zero_and_falls_like_tanh():
    got = values(lambda d: near(d, 5.0), 0.0, 0.2, 100.0)
    assert got == pytest.approx([1.0, 1.0 - math.tanh(1.0), 0.0])
    # tanh(x) = 1/2 at x = ln(3)/2
    assert values(lambda d: near(d, 2.0), 0.25 * math.log(3.0)) == pytest.approx([0.5])


def test_progress_is_linear_between_start_and_goal_and_clipped_outside():
    got = values(lambda z: progress(z, 0.1, 0.5), 0.0, 0.1, 0.2, 0.5, 0.9)
    assert got == pytest.approx([0.0, 0.0, 0.25, 1.0, 1.0])


def test_progress_runs_downwards_too():
    assert values(lambda z: progress(z, 2.0, 1.0), 2.5, 1.75, 0.0) == pytest.approx([0, 0.25, 1])


def test_tolerance_is_one_inside_and_has_the_stated_value_at_the_margin():
    def shape(x):
        return tolerance(x, -1.0, 1.0, 0.5, value_at_margin=0.2)

    assert values(shape, -1.0, 0.0, 1.0) == [1.0, 1.0, 1.0]
    assert values(shape, -1.5, 1.5) == pytest.approx([0.2, 0.2])
    # a gaussian: half the margin gives the fourth root, twice the margin the fourth power
    assert values(shape, 1.25, 2.0) == pytest.approx([0.2**0.25, 0.2**4])


def test_tolerance_without_margin_is_a_window():
    got = values(lambda x: tolerance(x, 0.0, 1.0, 0.0), -0.1, 0.0, 0.5, 1.0, 1.1)
    assert got == [0.0, 1.0, 1.0, 1.0, 0.0]


def test_tolerance_falls_to_a_tenth_by_default():
    assert values(lambda x: tolerance(x, 0.0, 0.0, 2.0), 2.0) == pytest.approx([0.1])


@pytest.mark.parametrize(
    "shape",
    [
        lambda x: near(x.abs(), 3.0),
        lambda x: progress(x, -1.0, 1.0),
        lambda x: tolerance(x, -0.2, 0.3, 0.7),
    ],
)
def test_shapes_stay_within_zero_and_one_keep_shape_and_type(shape):
    x = torch.linspace(-5, 5, 200).view(10, 20)
    got = shape(x)
    assert got.shape == x.shape and got.dtype == torch.float32
    assert got.min() >= 0.0 and got.max() <= 1.0


# Records.


class Sized:
    """As much of a simulation as a record asks for."""

    num_envs, device = 3, torch.device("cpu")


def independent(sums, resets):
    """What is paid for sums [steps][envs]; a list of envs is reset before each step."""
    best, paid = [None] * len(sums[0]), []
    for row, cleared in zip(sums, resets, strict=True):
        for i in cleared:
            best[i] = None
        pay = []
        for i, total in enumerate(row):
            pay.append(0.0 if best[i] is None else max(0.0, total - best[i]))
            best[i] = total if best[i] is None else max(best[i], total)
        paid.append(pay)
    return paid


def test_only_a_new_record_of_the_weighted_sum_is_paid_and_never_the_first_step():
    rng = torch.Generator().manual_seed(0)
    near_, lift = (torch.rand(30, 3, generator=rng) for _ in range(2))
    resets = [[i for i in range(3) if (7 * t + i) % 5 == 0] for t in range(30)]
    memory = {}
    record = RunningMax(memory, "best", {"near": 0.5, "lift": -2.0}, Sized())
    got = []
    for t in range(30):
        mask = torch.tensor([i in resets[t] for i in range(3)])
        record.clear(mask)
        got.append(record.gain({"lift": lift[t], "near": near_[t]}))
    sums = (0.5 * near_ - 2.0 * lift).tolist()
    wanted = torch.tensor(independent(sums, resets))
    torch.testing.assert_close(torch.stack(got), wanted, atol=1e-6, rtol=0.0)
    assert (wanted > 0).sum() > 5 and list(memory) == ["best"]


def test_a_sum_below_zero_counts_as_any_other_and_one_that_is_no_number_sets_no_record():
    record = RunningMax({}, "best", {"x": 1.0}, Sized())
    steps = [[-5.0, 1.0, math.nan], [-3.0, math.nan, 2.0], [-4.0, 3.0, 2.5]]
    got = [record.gain({"x": torch.tensor(row)}) for row in steps]
    assert got[0][:2].tolist() == [0.0, 0.0] and got[0][2].isnan()
    assert got[1][[0, 2]].tolist() == [2.0, 0.0] and got[1][1].isnan()
    assert got[2].tolist() == [0.0, 2.0, 0.5]


def test_other_terms_than_weights_and_a_taken_name_are_refused():
    memory = {"best": torch.zeros(3)}
    with pytest.raises(ValueError, match="a name of its own"):
        RunningMax(memory, "best", {"x": 1.0}, Sized())
    record = RunningMax(memory, "more", {"x": 1.0}, Sized())
    with pytest.raises(ValueError, match=r"weighs \['x'\], it is given \['x', 'y'\]"):
        record.gain({"x": torch.zeros(3), "y": torch.zeros(3)})


class Farthest(Rail):
    """Paid for every new farthest place to the right."""

    def start(self, sim):
        super().start(sim)
        self.record = RunningMax(self.memory, "record", {"place": 2.0}, sim)

    def reset(self, sim, mask, rng):
        super().reset(sim, mask, rng)
        self.record.clear(mask)

    def reward(self, sim, action):
        return {"near": self.record.gain({"place": sim.data.qpos[:, 0]})}


def walk(env, root, actions):
    places, rewards, ended = [], [], []
    for action in actions:
        root.set("action", action)
        transition, root = env.step_and_maybe_reset(root)
        places.append(transition["next", "teacher"][:, 0].tolist())
        rewards.append(transition["next", "reward"][:, 0])
        ended.append(transition["next", "done"][:, 0])
    return torch.stack(rewards), places, ended


def test_a_record_in_an_environment_begins_anew_with_each_episode_and_continues_exactly():
    actions = 2.0 * torch.rand(18, 3, 1, generator=torch.Generator().manual_seed(1)) - 1.0
    env = Env(Farthest(Config(start=0.3, episode_length=7)), 3, seed=2)
    rewards, places, ended = walk(env, env.current(), actions[:10])
    begun = [[0, 1, 2]] + [torch.nonzero(done)[:, 0].tolist() for done in ended[:-1]]
    sums = (2.0 * torch.tensor(places)).tolist()
    wanted = torch.tensor(independent(sums, begun))
    torch.testing.assert_close(rewards, wanted, atol=1e-5, rtol=0.0)
    assert rewards.max() > 0.05

    saved = {k: v.clone() for k, v in env.state_dict().items()}
    whole = walk(env, env.current(), actions[10:])[0]
    other = Env(Farthest(Config(start=0.3, episode_length=7)), 3, seed=9)
    other.load_state_dict(saved)
    assert torch.equal(walk(other, other.current(), actions[10:])[0], whole)
