"""The policy card: exact JSON, and nothing else."""

import dataclasses
import json
import math

import pytest

from penspin_style.features import (
    ActionChannel,
    Feature,
    Input,
    Joint,
    PolicyCard,
    command_differences,
    in_scale_of,
)

CARD = PolicyCard(
    task="cart",
    inputs=(
        Input("teacher", (Feature("pose", (3, 2), "m", history=4), Feature("on", (), "1"))),
        Input("pixels", (Feature("front", (8, 8, 3), "1", dtype="uint8"),)),
    ),
    actions=(ActionChannel("push", "N", 0.1, -math.pi, 1e-300, "delta"),),
    joints=(Joint("rail", "m", -1.5, 1.5, 0.1 + 0.2, 2.0 / 3.0, 5e-324),),
    control_dt=1.0 / 3.0,
    run="cart/run/seed0",
    preprocessing={"front": "divide by 255"},
    network={"kind": "gaussian", "in_key": "teacher", "hidden": [8, 4], "activation": "elu"},
    score={"success_rate": 0.1, "interval": [0.05, 0.2]},
    versions={"torch": "2.13.0"},
    weights_sha256="ab" * 32,
)


def edited(**changes):
    raw = json.loads(CARD.to_json())
    for path, value in changes.items():
        *outer, last = [int(key) if key.isdigit() else key for key in path.split("__")]
        inner = raw
        for key in outer:
            inner = inner[key]
        if value is KeyError:
            del inner[last]
        else:
            inner[last] = value
    return json.dumps(raw)


def test_a_card_survives_json_bit_for_bit():
    back = PolicyCard.from_json(CARD.to_json())
    assert back == CARD
    assert back.to_json() == CARD.to_json()
    assert back.control_dt.hex() == (1.0 / 3.0).hex()
    assert back.joints[0].default == 5e-324
    assert isinstance(back.inputs[0].features[0].shape, tuple)


def test_sizes_are_shape_times_history():
    assert [f.size for f in CARD.inputs[0].features] == [24, 1]
    assert [i.size for i in CARD.inputs] == [25, 192]


DEPTH = Feature("front_depth", (8, 9), "m")


@pytest.mark.parametrize(
    ("given", "is_image", "tensor"),
    [
        (Input("student", (Feature("pose", (3, 2), "m", history=4),)), False, ("float32", (24,))),
        (Input("student", (Feature("on", ()), Feature("q", (7,)))), False, ("float32", (8,))),
        (Input("q", (Feature("q", (7,), history=2),)), False, ("float32", (14,))),
        (Input("front_depth", (DEPTH,)), True, ("float32", (8, 9))),
        (
            Input("front_depth", (dataclasses.replace(DEPTH, history=2),)),
            True,
            ("float32", (2, 8, 9)),
        ),
        (Input("maps", (DEPTH,)), False, ("float32", (72,))),
        (Input("front_depth", (DEPTH, Feature("on", ()))), False, ("float32", (73,))),
        (
            Input("eye", (Feature("front_rgb", (8, 9, 3), "1", "uint8"),)),
            True,
            ("uint8", (8, 9, 3)),
        ),
        (
            Input("front_rgb", (Feature("front_rgb", (8, 9, 3), "1", "uint8", history=3),)),
            True,
            ("uint8", (3, 8, 9, 3)),
        ),
        (Input("button", (Feature("button", (), "1", "uint8"),)), True, ("uint8", ())),
    ],
)
def test_an_input_is_a_vector_or_one_image_in_its_own_shape(given, is_image, tensor):
    assert given.is_image is is_image
    assert given.tensor == tensor
    count = 1
    for n in tensor[1]:
        count *= n
    assert given.size == count


def test_features_of_other_types_do_not_share_an_input():
    mixed = Input("student", (Feature("q", (7,)), Feature("front_rgb", (8, 8, 3), dtype="uint8")))
    with pytest.raises(ValueError, match="'student': a feature that is not float32 must be alone"):
        _ = mixed.tensor


def test_images_survive_the_card():
    image = Input("front_rgb", (Feature("front_rgb", (8, 9, 3), "1", "uint8", history=2),))
    card = dataclasses.replace(CARD, inputs=(image, Input("front_depth", (DEPTH,))))
    back = PolicyCard.from_json(card.to_json())
    assert [i.tensor for i in back.inputs] == [("uint8", (2, 8, 9, 3)), ("float32", (8, 9))]
    assert all(i.is_image for i in back.inputs)


def test_cards_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.task = "other"


def test_a_card_with_a_number_that_json_lacks_is_not_written():
    bad = dataclasses.replace(CARD, control_dt=math.nan)
    with pytest.raises(ValueError, match="not JSON compliant"):
        bad.to_json()


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_card_with_a_number_that_json_lacks_is_not_read(constant):
    text = CARD.to_json().replace('"scale": 0.1', f'"scale": {constant}')
    assert constant in text
    with pytest.raises(ValueError, match=f"not JSON: it holds {constant}"):
        PolicyCard.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        (CARD.to_json()[:-20], "not JSON"),
        ("[]", "format 'list', this version reads 1"),
        ("null", "format 'NoneType'"),
        ("{}", "format None"),
        (edited(format=2), "format 2, this version reads 1"),
        (edited(task=KeyError), "missing 1 required positional argument: 'task'"),
        (edited(inputs=KeyError), "fields it should: 'inputs'"),
        (edited(surprise=1), "unexpected keyword argument 'surprise'"),
        (edited(actions__0__low=KeyError), "missing 1 required positional argument: 'low'"),
        (edited(joints__0__torque=3.0), "unexpected keyword argument 'torque'"),
        (edited(inputs__0__features__0__shape=KeyError), "fields it should: 'shape'"),
        (edited(inputs__0__features__0__shape=3), "not iterable"),
        (edited(inputs=3), "not iterable"),
        (edited(inputs=["teacher"]), "fields it should"),
    ],
)
def test_a_bad_card_is_refused_with_its_reason(text, message):
    with pytest.raises(ValueError, match=message):
        PolicyCard.from_json(text)


def test_defaults_fill_what_a_card_may_leave_out():
    short = edited(versions=KeyError, score=KeyError)
    assert PolicyCard.from_json(short).score == {}


def test_a_delay_travels_with_the_card_and_makes_no_other_feature():
    late = Feature("q", (2,), "rad", history=3, delay=1)
    card = PolicyCard("t", (Input("student", (late,)),), (), (), 0.05)
    (read,) = PolicyCard.from_json(card.to_json()).inputs[0].features
    assert read.delay == 1
    # cards from before delays were noted are cards of the same policies
    assert late == Feature("q", (2,), "rad", history=3)
    old = card.to_json().replace(',\n     "delay": 1', "")
    (read,) = PolicyCard.from_json(old).inputs[0].features
    assert "delay" not in old and read.delay == 0 and read == late


@pytest.mark.parametrize("place", ["task", "run", "unit", "key", "score"])
@pytest.mark.parametrize("text", ["\x1b[2J", "\x07", "a\nb", "\u202e", "\ud800", "\x9b31m"])
def test_a_card_with_a_text_that_a_terminal_would_act_on_is_not_read(place, text):
    change = {"task": {"task": text}, "run": {"run": text}, "score": {"score": {"a": [text]}}}
    change |= {"key": {"versions": {text: "1"}}}
    card = dataclasses.replace(CARD, **change.get(place, {}))
    if place == "unit":
        joint = dataclasses.replace(CARD.joints[0], unit=text)
        card = dataclasses.replace(CARD, joints=(joint, *CARD.joints[1:]))
    with pytest.raises(ValueError, match="has a text that is not printable"):
        PolicyCard.from_json(card.to_json())


def test_a_card_in_any_script_is_read():
    card = dataclasses.replace(CARD, task="prüfung 試験 °·⁻¹")
    assert PolicyCard.from_json(card.to_json()) == card


def test_a_card_with_a_key_twice_or_nested_without_end_is_not_read():
    text = CARD.to_json()
    twice = text.replace('"task":', '"task": "other", "task":')
    with pytest.raises(ValueError, match="not JSON: it holds the key 'task' twice"):
        PolicyCard.from_json(twice)
    deep = text.replace('"score": {', '"score": {"a": ' + "[" * 70 + "]" * 70 + ",")
    assert deep != text
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        PolicyCard.from_json(deep)


def test_a_policys_small_steps_are_said_in_channels_of_larger_ones():
    rows = (("waist", 0.01, "delta"), ("grip", 0.04, "delta"), ("lamp", 0.01, "absolute"))
    mine = tuple(ActionChannel(name, "1", scale, -1.0, 1.0, mode) for name, scale, mode in rows)
    theirs = tuple(dataclasses.replace(c, scale=0.02) for c in mine)
    card, factors = in_scale_of(dataclasses.replace(CARD, actions=mine), theirs)
    assert factors == (0.5, 1.0, 1.0)
    assert [c.scale for c in card.actions] == [0.02, 0.04, 0.01]
    left = command_differences(card, theirs, CARD.control_dt, "environment")
    assert left == [
        "grip: the policy has scale 0.04, the environment 0.02",
        "lamp: the policy has scale 0.01, the environment 0.02",
    ]
    other = tuple(dataclasses.replace(c, name=c.name + "2") for c in theirs)
    assert in_scale_of(card, other) == (card, (1.0, 1.0, 1.0))
