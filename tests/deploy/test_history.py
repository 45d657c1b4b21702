"""What a robot's policy is shown, against what the environment shows it in training."""

import numpy as np
import pytest
import torch

from penspin_style.deploy.history import Observer, stack_episode
from penspin_style.env.env import Env
from penspin_style.env.task import ObsTerm, load_task
from penspin_style.env.terms import Groups
from penspin_style.features import Feature, Input, PolicyCard


def card_of(*inputs):
    return PolicyCard("t", tuple(inputs), (), (), 0.05)


def student(env):
    keys = env.groups.reads("student")
    return env.card(task="t", run="", network={}, score={}, versions={}, in_keys=keys)


def recorded(env, steps, scale):
    """What the environment's student saw at each step of two episodes, and the terms behind it."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(2):
        td, rows = env.reset(), []
        for _ in range(steps):
            terms = {name: value.clone() for name, value in env.world.observe().items()}
            rows.append((terms, {name: td[name].clone() for name in env.groups.reads("student")}))
            action = scale * (2.0 * torch.rand(env.action_spec.shape, generator=rng) - 1.0)
            td = env.step(td.set("action", action))["next"]
        yield rows


def check(env, steps, *, scale=0.3):
    card, n = student(env), env.num_envs
    together, single = Observer(card, n), Observer(card)
    compared = 0
    for rows in recorded(env, steps, scale):
        together.reset()
        single.reset()
        for terms, shown in rows:
            values = {name: terms[name].numpy() for name in together.features}
            mine = together(values)
            first = single({name: value[0] for name, value in values.items()})
            for name, theirs in shown.items():
                assert np.array_equal(mine[name], theirs.numpy()), name
                assert np.array_equal(first[name], theirs[0].numpy()), name
                assert mine[name].dtype == theirs.numpy().dtype
                compared += theirs.numel()
    return compared


@pytest.mark.parametrize("lag", [0, 2])
def test_a_pen_students_inputs_are_the_environments_bit_for_bit(lag):
    kind = load_task("pen_spin_student")
    reads = ["proprio", "fingertips", "pen_ends", "tactile"]
    env = Env(kind(kind.Config(lag=lag, reads=reads, ends_noise=0.0)), 3, seed=4, nthread=1)
    assert {f.delay for group in student(env).inputs for f in group.features} == {lag}
    # history of 30 frames of 32 and of 32 numbers, 12, 3 frames of 6
    assert check(env, 40) == 2 * 40 * 3 * (30 * 32 + 12 + 3 * 6 + 30 * 32)


def test_a_panda_students_inputs_and_images_are_the_environments_bit_for_bit():
    kind = load_task("panda_lift_cube_vision")
    cfg = kind.Config(latency={})
    group = cfg.observation["student"]
    group["front_rgb"] = ObsTerm(history=3, delay=(1, 1))
    group["wrist_depth"] = ObsTerm(delay=(2, 2))
    group["tcp_pos"] = ObsTerm(history=2)
    env = Env(kind(cfg), 2, seed=4, nthread=1)
    image = 32 * 32
    assert check(env, 5) == 2 * 5 * 2 * (2 * 3 + 3 + 1 + (3 * 3 + 1 + 3 + 1) * image)


@pytest.mark.parametrize("seed", range(4))
def test_inputs_are_those_of_trainings_groups_for_any_history_delay_and_reset(seed):
    draw, n = np.random.default_rng(seed), 3
    shapes = {"q": (4,), "force": (), "ends": (2, 3), "rgb": (2, 2, 3), "depth": (2, 2)}

    def term():
        delay = int(draw.integers(0, 5))
        return ObsTerm(history=int(draw.integers(1, 7)), delay=(delay, delay))

    def values():
        drawn = {name: 200.0 * draw.random((n, *shape)) for name, shape in shapes.items()}
        return {k: v.astype(np.uint8 if k == "rgb" else np.float32) for k, v in drawn.items()}

    asked = {
        "student": {name: term() for name in shapes},
        "teacher": {name: term() for name in ("ends", "q")},
    }
    now = values()
    groups = Groups(
        asked,
        {name: torch.from_numpy(value) for name, value in now.items()},
        dict.fromkeys(shapes, "1"),
        torch.Generator().manual_seed(0),
        images=("rgb", "depth"),
    )
    card = card_of(*groups.inputs)
    alone = [Observer(card) for _ in range(n)]
    episodes = [[] for _ in range(n)]
    shown = [[] for _ in range(n)]
    mask = np.ones(n, bool)
    for _ in range(40):
        given = {name: torch.from_numpy(value) for name, value in now.items()}
        theirs = groups.observe(given, torch.from_numpy(mask) if mask.any() else None)
        for i in np.flatnonzero(mask) if mask.any() else range(n):
            if mask[i]:
                alone[i].reset()
                check_episode(card, episodes[i], shown[i])
                episodes[i], shown[i] = [], []
            row = {name: value[i] for name, value in now.items()}
            mine = alone[i](row)
            episodes[i].append(row)
            shown[i].append(mine)
            for name, value in theirs.items():
                assert np.array_equal(mine[name], value[i].numpy()), name
                assert mine[name].dtype == value.numpy().dtype
        # after a step the past moves on everywhere; then some begin anew
        mask = draw.random(n) < 0.2 if not mask.any() else np.zeros(n, bool)
        now = values()
    for rows in zip(episodes, shown, strict=True):
        check_episode(card, *rows)


def check_episode(card, rows, shown):
    """A recorded episode is stacked as it was observed, all of it and any part."""
    if not rows:
        return
    values = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    for steps in (np.arange(len(rows)), np.arange(len(rows))[::-2], np.arange(0)):
        for name, whole in stack_episode(card, values, steps).items():
            wanted = np.stack([seen[name] for seen in shown])[steps]
            assert np.array_equal(whole, wanted) and whole.dtype == wanted.dtype, name


def test_a_late_history_is_padded_with_the_first_value_of_the_episode():
    card = card_of(Input("student", (Feature("q", (1,), "rad", history=3, delay=1),)))
    observer = Observer(card)
    seen = [
        observer({"q": np.array([value])})["student"].tolist() for value in (1.0, 2.0, 3.0, 4.0)
    ]
    assert seen == [[1, 1, 1], [1, 1, 1], [1, 1, 2], [1, 2, 3]]
    observer.reset()
    assert observer({"q": np.array([7.0])})["student"].tolist() == [7, 7, 7]


def test_one_feature_in_two_inputs_keeps_a_past_for_each():
    near, late = Feature("q", (1,), "rad"), Feature("q", (1,), "rad", delay=2)
    observer = Observer(card_of(Input("a", (near,)), Input("b", (late,))))
    for value in (1.0, 2.0, 3.0):
        out = observer({"q": np.array([value]), "unread": np.zeros(9)})
    assert (out["a"].tolist(), out["b"].tolist()) == ([3], [1])


@pytest.mark.parametrize("history", [1, 2])
def test_inputs_are_the_callers_own(history):
    rgb = Feature("rgb", (2, 2, 3), "1", "uint8", history)
    observer = Observer(card_of(Input("rgb", (rgb,))))
    value = np.zeros((2, 2, 3), np.uint8)
    out = observer({"rgb": value})["rgb"]
    out += 7
    value += 9
    assert observer({"rgb": np.ones((2, 2, 3), np.uint8)})["rgb"].max() == 1
    assert out.min() == out.max() == 7


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({}, "the policy reads 'q'"),
        ({"q": np.zeros(2)}, r"q must be \(1,\) of float32, got \(2,\)"),
        ({"q": np.array([np.nan])}, "q is not finite"),
        ({"q": np.array([1e300])}, "q is not finite"),
        ({"q": np.array(["1"])}, "q must be"),
        ({"q": np.array([None])}, "q must be"),
    ],
)
def test_values_that_the_policy_cannot_read_are_refused_and_leave_no_trace(values, complaint):
    observer = Observer(card_of(Input("student", (Feature("q", (1,), "rad", history=2),))))
    observer({"q": np.array([1.0])})
    with pytest.raises(ValueError, match=complaint):
        observer(values)
    assert observer({"q": np.array([2.0])})["student"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("fields", [{"history": 10**9}, {"delay": 10**9}, {"delay": -1}])
def test_a_card_cannot_fill_the_memory(fields):
    with pytest.raises(ValueError, match="together they must be 1 to 10000"):
        Observer(card_of(Input("student", (Feature("q", (1,), **fields),))))
