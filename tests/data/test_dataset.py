"""What a policy would have read in an episode, and what was done: times, units, orders."""

import dataclasses
import hashlib

import h5py
import numpy as np
import pytest
import torch

from penspin_style.data.dataset import join, load, windows
from penspin_style.data.episodes.episode import Channel, EpisodeError, Header
from penspin_style.data.formats import penspin
from penspin_style.data.formats.penspin import Hand
from penspin_style.deploy.history import Observer
from penspin_style.env.task import ObsTerm
from penspin_style.env.terms import Groups
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard
from tasks.robots.allegro import description
from tasks.robots.allegro.description import JOINTS, fingertips
from tests.support.episodes import NAMES, SCALE, columns, image_card, record, vector_card

# What was read.


@pytest.mark.parametrize(("history", "delay"), [(1, 0), (4, 1), (3, 0), (30, 1), (2, 15)])
def test_inputs_are_what_the_robot_would_have_given_the_policy_then(tmp_path, history, delay):
    card = vector_card(history, delay)
    episode = record(tmp_path, card)
    found, observer = windows(episode, card), Observer(card)
    proprio, tip = episode["observation/proprio"], episode["observation/fingertips"]
    for t in range(episode.steps):
        read = observer({"proprio": proprio[t], "fingertips": tip[t]})
        assert np.array_equal(found.inputs["student"][t], read["student"])
    assert found.inputs["student"].shape == (12, 6 * history + 3)


def test_inputs_are_those_of_the_training_environment(tmp_path):
    card = vector_card(3, 1)
    episode = record(tmp_path, card)
    terms = {k: torch.from_numpy(episode[f"observation/{k}"]) for k in ("proprio", "fingertips")}
    asked = {"student": {"proprio": ObsTerm(delay=(1, 1), history=3), "fingertips": ObsTerm()}}
    units = {"proprio": "rad", "fingertips": "m"}
    first = {k: v[:1] for k, v in terms.items()}
    groups = Groups(asked, first, units, torch.Generator().manual_seed(0))
    seen = [groups.observe(first, torch.ones(1, dtype=torch.bool))["student"]]
    rest = ({k: v[t : t + 1] for k, v in terms.items()} for t in range(1, episode.steps))
    seen += [groups.observe(values)["student"] for values in rest]
    assert np.array_equal(windows(episode, card).inputs["student"], torch.cat(seen).numpy())


def test_no_input_holds_anything_later_than_its_label(tmp_path):
    card = vector_card(4, 1)
    values = columns(card)
    values["observation/proprio"][:] = np.arange(12)[:, None]
    found = windows(record(tmp_path, card, values), card)
    newest = found.inputs["student"][:, :24].max(axis=1)
    assert newest.tolist() == [0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]


@pytest.mark.parametrize("history", [1, 2])
def test_images_keep_their_shape(tmp_path, history):
    card = image_card(history)
    episode = record(tmp_path, card)
    found = windows(episode, card)
    rgb = episode["observation/front_rgb"]
    assert found.inputs["front_rgb"].dtype == np.uint8
    for given in card.inputs:
        assert found.inputs[given.name].shape == (12, *given.tensor[1])
    newest = found.inputs["front_rgb"] if history == 1 else found.inputs["front_rgb"][:, -1]
    assert np.array_equal(newest, rgb)
    if history == 2:
        assert np.array_equal(found.inputs["front_rgb"][1:, 0], rgb[:-1])


# What was done.


def test_labels_are_the_actions_that_lead_from_one_sent_target_to_the_next(tmp_path):
    card = vector_card()
    values = columns(card)
    found = windows(record(tmp_path, card, values), card)
    assert np.allclose(found.labels[1:], np.diff(values["sent"], axis=0) / SCALE, atol=1e-5)
    assert np.allclose(found.labels[0], values["action"][0], atol=1e-5)
    assert found.labels.dtype == np.float32 and found.beyond == 0


def test_labels_say_what_was_sent_and_not_what_was_asked_for(tmp_path):
    card = vector_card()
    values = columns(card)
    values["sent"] = 0.5 * values["sent"]  # as a limit on speed would make it
    found = windows(record(tmp_path, card, values), card)
    assert np.allclose(found.labels, 0.5 * values["action"], atol=1e-5)


def test_what_is_pressed_against_a_limit_keeps_the_action_that_was_recorded(tmp_path):
    card = vector_card()
    values = columns(card)
    values["action"][:] = 0.0
    values["action"][4:, 1] = -0.9  # from -0.9 on: to the limit, -1, and against it
    sent = np.zeros((12, 3))
    sent[:, 1] = np.maximum(-0.9 - 0.9 * SCALE * np.arange(-3, 9).clip(min=0), -1.0)
    values["sent"] = values["target"] = sent
    found = windows(record(tmp_path, card, values), card)
    assert np.allclose(found.labels, values["action"], atol=1e-5) and sent[-1, 1] == -1.0
    # an action that leads elsewhere says nothing
    values["action"][8:, 1] = 0.9
    found = windows(record(tmp_path, card, values), card)
    assert (found.labels[8:, 1] == 0.0).all()


def test_absolute_channels_are_labelled_by_their_place_between_the_limits(tmp_path):
    card = vector_card(mode="absolute")
    values = columns(card)
    values["sent"] = values["target"] = values["action"].astype(np.float64)  # limits are -1 and 1
    found = windows(record(tmp_path, card, values), card)
    assert np.allclose(found.labels, values["action"], atol=1e-6)


def test_the_first_row_is_left_out_where_what_came_before_is_not_known(tmp_path):
    card = vector_card()
    values = columns(card)
    values["target"][0] = 1.0  # at the limit: the action may have asked for more
    values["sent"] += 1.0 - values["sent"].max(axis=0)
    values["action"][0] = -0.5
    found = windows(record(tmp_path, card, values), card)
    assert found.steps.tolist() == list(range(1, 12))
    assert len(found.labels) == len(found.inputs["student"]) == 11


def test_an_episode_of_one_row_from_an_unknown_place_teaches_nothing(tmp_path):
    card = vector_card(history=3)
    values = {key: value[:1] for key, value in columns(card).items()}
    values["target"][0], values["sent"][0], values["action"][0] = 1.0, 1.0, -0.5
    found = windows(record(tmp_path, card, values), card)
    assert len(found) == 0 and found.inputs["student"].shape == (0, 6 * 3 + 3)


def test_a_few_labels_beyond_reach_are_clipped_and_counted(tmp_path):
    card = vector_card()
    values = columns(card)
    values["sent"][6:, 1] += 2 * SCALE
    found = windows(record(tmp_path, card, values), card)
    assert found.beyond == 1
    assert found.labels[6, 1] == 1.0


@pytest.mark.parametrize("factor", [57.3, 3.0])
def test_targets_of_another_unit_or_rate_are_refused(tmp_path, factor):
    card = vector_card()
    values = columns(card)
    values["sent"] *= factor
    with pytest.raises(EpisodeError, match=r"sent, row \d+: moves .* another rate or in other uni"):
        windows(record(tmp_path, card, values), card)


# Order.


def hora(values, names=NAMES[::-1]):
    """The same episode with joints in another order, and what says so."""
    flipped = {k: values[k][:, ::-1].copy() for k in ("action", "target", "sent")}
    proprio = values["observation/proprio"].reshape(-1, 2, 3)[:, :, ::-1].reshape(-1, 6)
    both = tuple(f"{what}/{n}" for what in ("measured", "target") for n in names)
    changes = {key: {"names": names} for key in flipped}
    changes["observation/proprio"] = {"names": both}
    return {**values, **flipped, "observation/proprio": proprio.copy()}, changes


@pytest.mark.parametrize("steps", [1, 12])
def test_joints_recorded_in_another_order_are_brought_into_the_policys(tmp_path, steps):
    card = vector_card()
    values = columns(card, steps)
    other, changes = hora(values)
    mine = windows(record(tmp_path / "mine", card, values), card)
    theirs = windows(record(tmp_path / "theirs", card, other, changes=changes), card)
    assert np.array_equal(mine.labels, theirs.labels)
    assert np.array_equal(mine.inputs["student"], theirs.inputs["student"])
    assert not np.array_equal(other["sent"], values["sent"])


def test_channels_of_other_names_are_refused(tmp_path):
    card = vector_card()
    changes = {"sent": {"names": ("ff", "mf", "thumb")}}
    with pytest.raises(EpisodeError, match=r"sent: .* other channels .*\['th', 'thumb'\]"):
        windows(record(tmp_path, card, changes=changes), card)


def hand_card(history=30, delay=1):
    """A student of the pen."""
    proprio = Feature("proprio", (32,), "rad", history=history, delay=delay)
    return PolicyCard(
        task="pen_spin_student",
        inputs=(Input("student", (proprio, Feature("fingertips", (4, 3), "m"))),),
        actions=tuple(ActionChannel(n, "rad", 1 / 24, -1.0, 2.0, "delta") for n in JOINTS),
        joints=tuple(Joint(n, "rad", -1.0, 2.0, 3.0, 0.1, 0.0) for n in JOINTS),
        control_dt=0.05,
    )


def hand(steps=9, seed=0):
    rng = np.random.default_rng(seed)
    target = 0.3 + np.cumsum(rng.uniform(-0.9, 0.9, (steps, 16)) / 24, axis=0)
    return target + rng.normal(0.0, 0.01, target.shape), target


def test_penspins_file_is_read_in_the_policys_own_units(tmp_path):
    with h5py.File(tmp_path / "real_data.h5", "w") as file:
        for i in range(2):
            qpos, target = hand(seed=i)
            group = file.create_group(f"replay_demon_{i}")
            group["qpos"], group["action"], group["current_target_qpos"] = (
                *(qpos, target - qpos),
                target,
            )
    card = hand_card()
    found = load(tmp_path, card, hand=Hand.of(description))
    digest = hashlib.sha256((tmp_path / "real_data.h5").read_bytes()).hexdigest()
    assert found.sha256 == {f"real_data.h5/replay_demon_{i}": digest for i in range(2)}
    for i, rows in enumerate(found.rows):
        qpos, target = hand(seed=i)
        # (target - last target) x 24, and neither rad nor target - qpos; 9 rows are fewer than 16
        assert np.allclose(rows.labels[-8:], np.diff(target, axis=0) * 24, atol=1e-4)
        frame = rows.inputs["student"][-1, : 30 * 32].reshape(30, 32)[-1]
        # one control step late, with the target that was followed then
        assert np.allclose(frame, np.concatenate((qpos[-2], target[-3])), atol=1e-6)
        tips = rows.inputs["student"][-1, 30 * 32 :].reshape(4, 3)
        assert np.allclose(tips, fingertips(qpos[-1]), atol=1e-6)


def test_columns_and_not_rows_of_horas_order_are_permuted(tmp_path):
    qpos, target = hand(40)
    to_hora = np.argsort(penspin.FROM_HORA)  # index, thumb, middle, ring
    frames = np.concatenate((qpos[:, to_hora], target[:, to_hora]), axis=1)
    with h5py.File(tmp_path / "baked.h5", "w") as file:
        for k in range(11):
            group = file.create_group(f"episode_{k}")
            group["obs"], group["proprio_hist"] = np.zeros(96), frames[k : k + 30]
            group["finger_tip_pos"], group["action"] = np.zeros(12), np.zeros(16)
    (rows,) = load(tmp_path / "baked.h5", hand_card(), hand=Hand.of(description)).rows
    assert np.allclose(rows.labels[-39:], np.diff(target, axis=0) * 24, atol=1e-4)


# What is chosen, and what refused.


def test_failures_are_left_out_unless_asked_for(tmp_path):
    card = vector_card()
    for seed, success in enumerate((True, False, None, True)):
        record(tmp_path, card, columns(card, seed=seed), success=success)
    found = load(tmp_path, card)
    assert (len(found.rows), found.left_out) == (2, 2)
    assert list(found.sha256) == sorted(found.sha256) and len(found.sha256) == 2
    everything = load(tmp_path, card, failures=True)
    assert (len(everything.rows), everything.left_out) == (4, 0)
    assert len(join(everything.rows)) == 48


def test_a_folder_without_a_success_is_refused(tmp_path):
    card = vector_card()
    with pytest.raises(ValueError, match="holds no episodes"):
        load(tmp_path, card)
    record(tmp_path, card, success=False)
    with pytest.raises(
        ValueError, match=r"none of the 1 episodes .* was a success; .* algo\.failures=true"
    ):
        load(tmp_path, card)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unit": "m"}, r"observation/proprio: is in \[m\], the policy reads \[rad\]"),
        ({"name": "observation/propio"}, r"is missing, and the policy of toy reads it; observed"),
        ({"shape": (5,)}, r"observation/proprio: is \(5,\), the policy reads \(6,\)"),
        ({"dtype": "uint8"}, r"observation/proprio: is uint8, the policy reads float32"),
    ],
)
def test_an_episode_that_lacks_what_the_policy_reads_is_refused(tmp_path, change, message):
    card = vector_card()
    values = columns(card)
    key = "observation/proprio"
    value = values.pop(key)[:, : change.get("shape", (6,))[0]].astype(change.get("dtype", "f4"))
    values[change.get("name", key)] = value
    like = dataclasses.replace(card, inputs=(Input("x", (Feature("fingertips", (3,), "m"),)),))
    given = {"name": key, "shape": (6,), "unit": "rad", **change}
    more = (Channel(**given),)
    head = Header.of_card(like, source="twin", robot="toy", more=more)
    with pytest.raises(EpisodeError, match=message):
        windows(record(tmp_path, card, values, header=head), card)


def test_another_control_rate_is_refused_and_penspins_is_not(tmp_path):
    card = vector_card()
    assert len(windows(record(tmp_path, card, control_dt=1 / 18), card)) == 12
    with pytest.raises(EpisodeError, match=r"control steps of 0\.1 s, the policy acts every 0\.05"):
        windows(record(tmp_path, card, control_dt=0.1), card)
