"""Observation terms on numbers that count up, so that every entry tells where it comes from."""

import itertools

import pytest
import torch

from penspin_style.env.task import Latency, ObsTerm, TaskConfig
from penspin_style.env.terms import Groups, TermBuffer
from penspin_style.features import Feature, Input

ALL = None  # the mask of a step


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def groups(term, values, seed=0, unit="m"):
    return Groups({"g": {"x": term}}, {"x": values}, {"x": unit}, seeded(seed))


def stamp(num_envs, step, size=1):
    """A value that names its environment, step and component: 1000 e + 10 t + c."""
    env = 1000.0 * torch.arange(num_envs)[:, None]
    return env + 10.0 * step + torch.arange(size)


def everyone(num_envs):
    return torch.ones(num_envs, dtype=torch.bool)


# Noise.


def test_noise_is_uniform_within_its_half_width_in_the_terms_own_unit():
    truth = torch.full((4000, 2), 5.0)
    (seen,) = groups(ObsTerm(noise=0.3), truth).observe({"x": truth}).values()
    error = seen - 5.0
    assert error.abs().max() <= 0.3 + 1e-6  # 5.3 is rounded to float32
    assert error.max() > 0.299 and error.min() < -0.299
    assert abs(error.mean().item()) < 4 * 0.3 / (3 * 8000) ** 0.5  # sd of U(-w, w) is w / sqrt 3
    assert error.std().item() == pytest.approx(0.3 / 3**0.5, rel=0.03)
    assert not torch.equal(error[:, 0], error[:, 1])


def test_no_noise_is_exact_and_draws_nothing():
    truth = torch.randn(5, 3, generator=seeded(1))
    rng = seeded(2)
    before = rng.get_state()
    (seen,) = (
        Groups({"g": {"x": ObsTerm()}}, {"x": truth}, {"x": "m"}, rng)
        .observe({"x": truth})
        .values()
    )
    assert torch.equal(seen, truth)
    assert torch.equal(rng.get_state(), before)


def test_noise_enters_before_history_so_that_a_value_keeps_its_noise():
    g = groups(ObsTerm(noise=0.1, history=2), stamp(3, 0))
    g.observe({"x": stamp(3, 0)}, everyone(3))
    first = g.observe({"x": stamp(3, 1)})["g"]
    second = g.observe({"x": stamp(3, 2)})["g"]
    assert torch.equal(second[:, 0], first[:, 1])
    assert (second[:, 1] != stamp(3, 2)[:, 0]).all()


# Delay.


@pytest.mark.parametrize("late", [0, 1, 3])
def test_a_fixed_delay_arrives_exactly_that_many_steps_late(late):
    g = groups(ObsTerm(delay=(late, late)), stamp(2, 0, 2))
    g.observe({"x": stamp(2, 0, 2)}, everyone(2))
    for step in range(1, 8):
        seen = g.observe({"x": stamp(2, step, 2)})["g"]
        assert torch.equal(seen, stamp(2, max(0, step - late), 2))


def test_a_delay_is_drawn_per_environment_within_its_range_and_kept_for_the_episode():
    n = 600
    g = groups(ObsTerm(delay=(1, 4)), stamp(n, 0))
    g.observe({"x": stamp(n, 0)}, everyone(n))
    lateness = []
    for step in range(1, 9):
        seen = g.observe({"x": stamp(n, step)})["g"]
        if step >= 4:
            lateness.append((stamp(n, step) - seen)[:, 0] / 10.0)
    for later in lateness:
        assert torch.equal(later, lateness[0])
    counts = torch.bincount(lateness[0].long(), minlength=6).tolist()
    assert counts[0] == counts[5] == 0
    assert all(100 < count < 200 for count in counts[1:5])  # 150 expected, sd 11


def test_a_reset_draws_the_delay_again_for_the_masked_environments_only():
    n = 200
    g = groups(ObsTerm(delay=(0, 9)), stamp(n, 0))
    g.observe({"x": stamp(n, 0)}, everyone(n))
    before = g.buffers["g/x"].delay.clone()
    mask = torch.arange(n) % 2 == 0
    g.observe({"x": stamp(n, 1)}, mask)
    after = g.buffers["g/x"].delay
    assert torch.equal(before[~mask], after[~mask])
    assert (before[mask] != after[mask]).float().mean() > 0.75  # 0.9 expected of 100


def test_delay_and_history_combine():
    g = groups(ObsTerm(delay=(2, 2), history=3), stamp(1, 0))
    g.observe({"x": stamp(1, 0)}, everyone(1))
    for step in range(1, 10):
        seen = g.observe({"x": stamp(1, step)})["g"]
    assert seen.tolist() == [[50.0, 60.0, 70.0]]  # at step 9: 9 - 2 and the two before it


# History.


def test_history_is_stacked_oldest_first_with_whole_values_together():
    g = groups(ObsTerm(history=3), stamp(2, 0, 2))
    g.observe({"x": stamp(2, 0, 2)}, everyone(2))
    for step in range(1, 5):
        seen = g.observe({"x": stamp(2, step, 2)})["g"]
    assert seen[0].tolist() == [20.0, 21.0, 30.0, 31.0, 40.0, 41.0]
    assert seen[1].tolist() == [1020.0, 1021.0, 1030.0, 1031.0, 1040.0, 1041.0]


def test_a_reset_fills_the_past_so_that_nothing_of_the_last_episode_shows():
    term = ObsTerm(delay=(0, 3), history=4)
    g = groups(term, stamp(6, 0))
    g.observe({"x": stamp(6, 0)}, everyone(6))
    for step in range(1, 7):
        g.observe({"x": stamp(6, step)})
    mask = torch.tensor([True, False, True, False, False, True])
    new = torch.full((6, 1), -7.0)
    first = g.observe({"x": new}, mask)["g"]
    assert (first[mask] == -7.0).all()
    seen = [g.observe({"x": new - step})["g"][mask] for step in range(1, 9)]
    assert (torch.stack(seen) <= -7.0).all()
    assert (seen[-1] < -7.0).all()  # and it moves on: the oldest of step 8 is at most 6 steps late


def test_a_reset_leaves_the_other_environments_untouched():
    kept = groups(ObsTerm(delay=(1, 1), history=2), stamp(4, 0))
    disturbed = groups(ObsTerm(delay=(1, 1), history=2), stamp(4, 0))
    for g in (kept, disturbed):
        g.observe({"x": stamp(4, 0)}, everyone(4))
        g.observe({"x": stamp(4, 1)})
    mask = torch.tensor([False, True, False, False])
    disturbed.observe({"x": torch.full((4, 1), 5.0)}, mask)
    expected = kept.observe({"x": stamp(4, 2)})["g"]
    seen = disturbed.observe({"x": stamp(4, 2)})["g"]
    assert torch.equal(seen[~mask], expected[~mask])
    assert seen[mask].tolist() == [[5.0, 5.0]]


def test_a_nan_of_the_last_episode_does_not_survive_a_reset():
    g = groups(ObsTerm(history=3), torch.zeros(2, 1))
    g.observe({"x": torch.tensor([[float("nan")], [1.0]])})
    first = g.observe({"x": torch.zeros(2, 1)}, torch.tensor([True, False]))["g"]
    assert first[0].tolist() == [0.0, 0.0, 0.0]
    assert first[1].tolist() == [0.0, 0.0, 1.0]


def test_a_ring_is_no_longer_than_delay_and_history_need():
    assert TermBuffer(ObsTerm(delay=(0, 3), history=4), torch.zeros(2, 5)).ring.shape == (2, 7, 5)


# Latency.


def late_group(terms, n, seed=0, **latency):
    """One group of terms that stamp their environment and step, and how late it is."""
    values = {name: stamp(n, 0) for name in terms}
    units = dict.fromkeys(terms, "m")
    layout, late = {"g": terms}, {"g": Latency(**latency)}
    return Groups(layout, values, units, seeded(seed), latency=late)


def lateness(g, names, step, n):
    """What the walk does at a step; steps that each term is late by, (terms, n)."""
    g.draw_latency()
    seen = g.observe({name: stamp(n, step) for name in names})["g"]
    return ((stamp(n, step) - seen) / 10.0).long().T


def begin(g, names, n, step=0, mask=None):
    mask = everyone(n) if mask is None else mask
    g.draw_latency(mask)
    return g.observe({name: stamp(n, step) for name in names}, mask)["g"]


def test_a_certain_latency_holds_for_the_whole_group_on_top_of_own_delays():
    terms = {"x": ObsTerm(), "y": ObsTerm(delay=(1, 1))}
    g = late_group(terms, 3, weights=[0.0, 0.0, 1.0])
    begin(g, terms, 3)
    for step in range(1, 8):
        x, y = lateness(g, terms, step, 3).tolist()
        assert (x, y) == ([min(step, 2)] * 3, [min(step, 3)] * 3)


def test_latency_and_history_combine():
    g = late_group({"x": ObsTerm(history=3)}, 1, weights=[0.0, 1.0])
    begin(g, ("x",), 1)
    for step in range(1, 7):
        g.draw_latency()
        seen = g.observe({"x": stamp(1, step)})["g"]
    assert seen.tolist() == [[30.0, 40.0, 50.0]]


def test_lateness_is_as_frequent_as_its_weights_say():
    n, weights = 4000, [2.0, 1.0, 0.0, 1.0]
    g = late_group({"x": ObsTerm()}, n, weights=weights)
    begin(g, ("x",), n)
    for step in range(1, 6):
        late = lateness(g, ("x",), step, n)
    counts = torch.bincount(late[0], minlength=4).tolist()
    for count, p in zip(counts, (0.5, 0.25, 0.0, 0.25), strict=True):
        assert abs(count - p * n) <= 4 * (n * p * (1 - p)) ** 0.5


def test_the_default_weights_are_the_published_ones():
    published = [0.83, 0.104, 0.02, 0.014]  # of a Zipf law, cut off after four
    shares = [w / sum(published) for w in published]
    assert Latency().weights == pytest.approx(shares, abs=5e-4)
    assert sum(Latency().weights) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("shared", [True, False])
def test_a_shared_draw_holds_for_all_terms_and_others_have_their_own(shared):
    terms = {"x": ObsTerm(), "y": ObsTerm(), "z": ObsTerm()}
    g = late_group(terms, 200, weights=[1.0, 1.0, 1.0], shared=shared)
    begin(g, terms, 200)
    for step in range(1, 6):
        x, y, z = lateness(g, terms, step, 200)
    unlike = {name: (x != other).float().mean().item() for name, other in (("y", y), ("z", z))}
    if shared:
        assert unlike == {"y": 0.0, "z": 0.0}
    else:
        assert all(0.5 < share < 0.83 for share in unlike.values())  # 2/3 expected, sd 0.033
    assert len(x.unique()) == 3


def test_lateness_is_drawn_again_at_every_step_or_kept_until_the_reset():
    n, settings = 300, {"weights": [1.0] * 5}
    moving = late_group({"x": ObsTerm()}, n, **settings)
    fixed = late_group({"x": ObsTerm()}, n, every_step=False, **settings)
    seen = {}
    for g in (moving, fixed):
        begin(g, ("x",), n)
        seen[g] = [lateness(g, ("x",), step, n)[0] for step in range(1, 12)][4:]
    changes = [(a != b).float().mean() for a, b in itertools.pairwise(seen[moving])]
    assert all(0.7 < change < 0.9 for change in changes)  # 4/5 expected, sd 0.023
    assert all(torch.equal(late, seen[fixed][0]) for late in seen[fixed])
    assert all(40 <= count <= 85 for count in torch.bincount(seen[fixed][0]).tolist())  # 60, sd 7
    mask = torch.arange(n) < 150
    begin(fixed, ("x",), n, step=12, mask=mask)
    after = [lateness(fixed, ("x",), step, n)[0] for step in range(13, 20)][-1]
    assert torch.equal(after[~mask], seen[fixed][0][~mask])
    assert 0.65 < (after[mask] != seen[fixed][0][mask]).float().mean() < 0.95


@pytest.mark.parametrize("every_step", [True, False])
def test_latency_shows_nothing_of_the_last_episode(every_step):
    n = 50
    g = late_group({"x": ObsTerm(delay=(0, 2), history=2)}, n, weights=[1.0] * 4,
                   every_step=every_step)  # fmt: skip
    begin(g, ("x",), n)
    for step in range(1, 10):
        lateness(g, ("x",), step, n)
    mask = torch.arange(n) % 2 == 0
    first = begin(g, ("x",), n, step=50, mask=mask)
    assert torch.equal(first[mask], stamp(n, 50)[mask].expand(-1, 2))
    oldest = stamp(n, 50)
    for step in range(51, 56):
        g.draw_latency()
        seen = g.observe({"x": stamp(n, step)})["g"]
        assert (seen >= oldest)[mask].all()
        assert (seen >= stamp(n, 9 - 2 - 3 - 1))[~mask].all()


def test_another_group_is_not_late():
    values = {"x": stamp(2, 0)}
    layout = {"slow": {"x": ObsTerm()}, "fast": {"x": ObsTerm()}}
    late = {"slow": Latency(weights=[0.0, 1.0])}
    g = Groups(layout, values, {"x": "m"}, seeded(), latency=late)
    g.observe(values, everyone(2))
    g.draw_latency()
    seen = g.observe({"x": stamp(2, 1)})
    assert torch.equal(seen["slow"], stamp(2, 0)) and torch.equal(seen["fast"], stamp(2, 1))
    assert set(g.buffers) == {"slow/x"}


def test_lateness_is_restored_bit_for_bit():
    for shared, every_step in itertools.product((True, False), repeat=2):
        terms = {"x": ObsTerm(), "y": ObsTerm()}
        settings = {"weights": [1.0] * 3, "shared": shared, "every_step": every_step}
        first, second = (late_group(terms, 20, seed, **settings) for seed in (1, 2))
        for g in (first, second):
            begin(g, terms, 20)
            for step in range(1, 5):
                lateness(g, terms, step, 20)
        state = {key: value.clone() for key, value in first.state_dict().items()}
        late = {"late/g"} if shared else {"late/g/x", "late/g/y"}
        assert {key for key in state if key.startswith("late")} == late
        second.load_state_dict(state)
        second.rng.set_state(first.rng.get_state())
        for step in range(5, 9):
            assert torch.equal(*(lateness(g, terms, step, 20) for g in (first, second)))


# Groups.


def test_groups_join_their_terms_in_the_configured_order():
    terms = {
        "flag": torch.tensor([True, False]),
        "pose": torch.arange(12, dtype=torch.float64).view(2, 3, 2),
        "speed": torch.tensor([0.5, -0.5]),
    }
    units = {"flag": "1", "pose": "m", "speed": "m/s"}
    layout = {
        "teacher": {"speed": ObsTerm(), "pose": ObsTerm(), "flag": ObsTerm()},
        "student": {"pose": ObsTerm(history=2)},
    }
    g = Groups(layout, terms, units, seeded())
    assert g.inputs == (
        Input(
            "teacher",
            (
                Feature("speed", (), "m/s"),
                Feature("pose", (3, 2), "m"),
                Feature("flag", (), "1"),
            ),
        ),
        Input("student", (Feature("pose", (3, 2), "m", history=2),)),
    )
    assert [i.size for i in g.inputs] == [8, 12]
    seen = g.observe(terms, everyone(2))
    assert {name: value.dtype for name, value in seen.items()} == dict.fromkeys(
        layout, torch.float32
    )
    assert seen["teacher"].tolist() == [
        [0.5, 0, 1, 2, 3, 4, 5, 1],
        [-0.5, 6, 7, 8, 9, 10, 11, 0],
    ]
    assert seen["student"].tolist() == [[0, 1, 2, 3, 4, 5] * 2, [6, 7, 8, 9, 10, 11] * 2]


def test_one_term_has_a_past_of_its_own_in_every_group():
    layout = {"fast": {"x": ObsTerm()}, "slow": {"x": ObsTerm(delay=(2, 2))}}
    g = Groups(layout, {"x": stamp(1, 0)}, {"x": "m"}, seeded())
    g.observe({"x": stamp(1, 0)}, everyone(1))
    for step in range(1, 5):
        seen = g.observe({"x": stamp(1, step)})
    assert (seen["fast"].item(), seen["slow"].item()) == (40.0, 20.0)


def test_what_is_returned_does_not_change_with_the_simulation():
    live = torch.zeros(2, 1, dtype=torch.float64)
    g = Groups(
        {"now": {"x": ObsTerm()}, "past": {"x": ObsTerm(history=2)}},
        *({"x": live}, {"x": "m"}, seeded()),
    )
    live32 = live.float()
    seen = g.observe({"x": live32}, everyone(2))
    live32.fill_(9.0)
    assert seen["now"].tolist() == [[0.0], [0.0]]
    assert g.observe({"x": live32})["past"].tolist() == [[0.0, 9.0], [0.0, 9.0]]


# Errors.


def test_an_unknown_term_names_group_term_and_what_there_is():
    with pytest.raises(ValueError, match=r"observation\.g asks for \['y'\].*observes \['x'\]"):
        Groups({"g": {"x": ObsTerm(), "y": ObsTerm()}}, {"x": stamp(1, 0)}, {"x": "m"}, seeded())


def test_a_term_that_nobody_reads_is_refused():
    terms = {"x": stamp(1, 0), "idle": stamp(1, 0)}
    with pytest.raises(ValueError, match=r"computes \['idle'\], but no observation group"):
        Groups({"g": {"x": ObsTerm()}}, terms, {"x": "m", "idle": "m"}, seeded())


def test_a_term_without_a_unit_is_refused():
    with pytest.raises(ValueError, match=r"no unit for \['x'\]"):
        Groups({"g": {"x": ObsTerm()}}, {"x": stamp(1, 0)}, {}, seeded())


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (ObsTerm(noise=-0.1), r"observation\.g\.x\.noise must be >= 0, got -0\.1"),
        (ObsTerm(delay=(3, 2)), r"observation\.g\.x\.delay must be 0 <= fewest <= most"),
        (ObsTerm(delay=(-1, 2)), r"observation\.g\.x\.delay must be 0 <= fewest <= most"),
        (ObsTerm(history=0), r"observation\.g\.x\.history must be at least 1, got 0"),
    ],
)
def test_a_config_refuses_invalid_terms(term, message):
    with pytest.raises(ValueError, match=message):
        TaskConfig(observation={"g": {"x": term}})


# State.


def test_state_restores_rings_and_delays_bit_for_bit():
    term = ObsTerm(noise=0.2, delay=(0, 3), history=2)
    first, second = groups(term, stamp(5, 0), seed=1), groups(term, stamp(5, 0), seed=2)
    for g in (first, second):
        g.observe({"x": stamp(5, 0)}, everyone(5))
        g.observe({"x": stamp(5, 1)})
    assert not torch.equal(first.observe({"x": stamp(5, 2)})["g"],
                           second.observe({"x": stamp(5, 2)})["g"])  # fmt: skip
    state = {key: value.clone() for key, value in first.state_dict().items()}
    assert set(state) == {"g/x/ring", "g/x/delay"}
    second.load_state_dict(state)
    second.rng.set_state(first.rng.get_state())
    for step in range(3, 8):
        seen = [g.observe({"x": stamp(5, step)})["g"] for g in (first, second)]
        assert torch.equal(*seen)
    assert torch.equal(state["g/x/ring"][:, -1, 0].round(decimals=-1), stamp(5, 2)[:, 0])
