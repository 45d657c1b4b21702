"""Images in observation groups, each of which names its environment and step."""

import pytest
import torch

from penspin_style.env.task import Latency, ObsTerm
from penspin_style.env.terms import Groups
from penspin_style.features import Feature, Input


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def everyone(num_envs):
    return torch.ones(num_envs, dtype=torch.bool)


def stamp(num_envs, step):
    """A colour image that names its environment and step: 100 e + 10 t + 0..5."""
    pixel = torch.arange(6).view(2, 1, 3)
    return (100 * torch.arange(num_envs).view(-1, 1, 1, 1) + 10 * step + pixel).to(torch.uint8)


def metres(num_envs, step):
    """A depth image that does."""
    return stamp(num_envs, step)[..., 0] / 4.0


def groups(members, num_envs=2, **settings):
    """Groups on the numbers `x` and the images `a_rgb` and `a_depth`."""
    terms = {
        "x": torch.zeros(num_envs, 1),
        "a_rgb": stamp(num_envs, 0),
        "a_depth": metres(num_envs, 0),
    }
    listed = {name for group in members.values() for name in group}
    terms = {name: value for name, value in terms.items() if name in listed}
    units = {"x": "m", "a_rgb": "1", "a_depth": "m"}
    return Groups(members, terms, units, seeded(), images=("a_rgb", "a_depth"), **settings)


def test_images_are_inputs_of_their_own_and_keep_shape_and_type():
    g = groups({"g": {"a_rgb": ObsTerm(), "x": ObsTerm(), "a_depth": ObsTerm(history=3)}})
    assert g.inputs == (
        Input("g", (Feature("x", (1,), "m"),)),
        Input("a_rgb", (Feature("a_rgb", (2, 1, 3), "1", "uint8"),)),
        Input("a_depth", (Feature("a_depth", (2, 1), "m", history=3),)),
    )
    assert g.reads("g") == ("g", "a_rgb", "a_depth")
    terms = {"x": torch.ones(2, 1), "a_rgb": stamp(2, 3), "a_depth": metres(2, 3)}
    seen = g.observe(terms, everyone(2))
    for given in g.inputs:
        dtype, shape = given.tensor
        value = seen[given.name]
        assert (value.dtype, tuple(value.shape)) == (getattr(torch, dtype), (2, *shape))
    assert torch.equal(seen["a_rgb"], terms["a_rgb"])
    assert torch.equal(seen["a_depth"], terms["a_depth"][:, None].expand(2, 3, 2, 1))


def test_a_group_of_images_alone_has_no_vector():
    g = groups({"teacher": {"x": ObsTerm()}, "student": {"a_rgb": ObsTerm()}})
    assert [i.name for i in g.inputs] == ["teacher", "a_rgb"]
    assert (g.reads("student"), g.reads("teacher"), g.reads("nobody")) == (
        ("a_rgb",),
        ("teacher",),
        (),
    )


@pytest.mark.parametrize("late", [0, 2])
def test_an_image_with_a_history_is_a_stack_with_the_oldest_first(late):
    term = ObsTerm(delay=(late, late), history=3)
    g = groups({"g": {"a_rgb": term, "a_depth": term}})
    g.observe({"a_rgb": stamp(2, 0), "a_depth": metres(2, 0)}, everyone(2))
    for step in range(1, 9):
        seen = g.observe({"a_rgb": stamp(2, step), "a_depth": metres(2, step)})
    for name, image in (("a_rgb", stamp), ("a_depth", metres)):
        stack = torch.stack([image(2, 8 - late - k) for k in (2, 1, 0)], dim=1)
        assert torch.equal(seen[name], stack)
        assert seen[name].dtype == stack.dtype


def test_a_late_image_without_a_history_has_no_axis_for_one():
    g = groups({"g": {"a_rgb": ObsTerm(delay=(1, 1))}})
    g.observe({"a_rgb": stamp(2, 0)}, everyone(2))
    assert torch.equal(g.observe({"a_rgb": stamp(2, 1)})["a_rgb"], stamp(2, 0))
    assert torch.equal(g.observe({"a_rgb": stamp(2, 2)})["a_rgb"], stamp(2, 1))


def test_a_reset_fills_the_past_of_an_image_in_the_masked_environments_only():
    g = groups({"g": {"a_rgb": ObsTerm(delay=(1, 1), history=2)}}, num_envs=2)
    g.observe({"a_rgb": stamp(2, 0)}, everyone(2))
    for step in (1, 2, 3):
        g.observe({"a_rgb": stamp(2, step)})
    mask = torch.tensor([True, False])
    g.observe({"a_rgb": stamp(2, 7)}, mask)
    seen = g.observe({"a_rgb": stamp(2, 8)})["a_rgb"]
    assert torch.equal(seen[0], torch.stack((stamp(2, 7)[0],) * 2))  # 8 is one step late
    assert torch.equal(seen[1], torch.stack((stamp(2, 2)[1], stamp(2, 3)[1])))


def test_numbers_and_images_can_be_observed_apart():
    g = groups({"g": {"x": ObsTerm(history=2), "a_rgb": ObsTerm(history=2)}})
    everything = {"x": torch.zeros(2, 1), "a_rgb": stamp(2, 0)}
    g.observe(everything, everyone(2))
    assert set(g.observe({"x": torch.ones(2, 1)})) == {"g"}
    seen = g.observe({"a_rgb": stamp(2, 1)})
    assert set(seen) == {"a_rgb"}
    assert torch.equal(seen["a_rgb"], torch.stack((stamp(2, 0), stamp(2, 1)), dim=1))
    assert g.observe({"x": torch.full((2, 1), 2.0)})["g"].tolist() == [[1.0, 2.0]] * 2


def test_numbers_and_images_of_a_group_are_equally_late():
    latency = {"g": Latency(weights=[1.0, 1.0, 1.0])}
    g = groups({"g": {"x": ObsTerm(), "a_rgb": ObsTerm()}}, num_envs=2, latency=latency)
    g.observe({"x": torch.zeros(2, 1), "a_rgb": stamp(2, 0)}, everyone(2))
    lateness = set()
    for step in range(1, 21):
        g.draw_latency()
        x = torch.full((2, 1), float(step))
        numbers = g.observe({"x": x})["g"]
        image = g.observe({"a_rgb": stamp(2, step)})["a_rgb"]
        for env in range(2):
            assert torch.equal(image[env], stamp(2, int(numbers[env]))[env])
            lateness.add(step - int(numbers[env]))
    assert lateness == {0, 1, 2}


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            {"g": {"x": ObsTerm(), "a_rgb": ObsTerm()}, "h": {"a_rgb": ObsTerm()}},
            r"lists \['a_rgb'\] in two groups; an image is in one",
        ),
        ({"a_rgb": {"a_rgb": ObsTerm()}}, r"a group and an image of one name: \['a_rgb'\]"),
    ],
)
def test_an_image_has_one_owner_and_a_name_of_its_own(members, message):
    with pytest.raises(ValueError, match=message):
        groups(members)


def test_the_past_of_images_is_restored_bit_for_bit():
    members = {"g": {"a_rgb": ObsTerm(delay=(0, 2), history=2), "x": ObsTerm()}}
    latency = {"g": Latency(weights=[1.0, 1.0])}
    first, second = (groups(members, num_envs=4, latency=latency) for _ in range(2))
    for g, offset in ((first, 0), (second, 5)):
        g.rng.manual_seed(offset)
        terms = {"x": torch.zeros(4, 1), "a_rgb": stamp(4, offset)}
        g.observe(terms, everyone(4))
        g.draw_latency()
        g.observe({**terms, "a_rgb": stamp(4, offset + 1)})
    state = {key: value.clone() for key, value in first.state_dict().items()}
    assert {"g/a_rgb/ring", "g/a_rgb/delay", "late/g"} <= set(state)
    second.load_state_dict(state)
    second.rng.set_state(first.rng.get_state())
    for step in range(2, 8):
        terms = {"x": torch.full((4, 1), float(step)), "a_rgb": stamp(4, step)}
        a, b = (g.draw_latency() or g.observe(terms) for g in (first, second))
        assert all(torch.equal(a[name], b[name]) for name in ("g", "a_rgb"))
