"""PenSpin's files: what is packed comes back, what its scripts wrote is read, joints in order."""

import dataclasses
import os

import h5py
import numpy as np
import pytest

from penspin_style.data.check import check
from penspin_style.data.episodes.episode import (
    Episode,
    EpisodeError,
    Header,
    episodes,
    write_episode,
)
from penspin_style.data.formats import penspin
from penspin_style.data.formats.penspin import pack, read, unpack
from penspin_style.features import Feature, Input
from tasks.robots.allegro import model as allegro
from tests.support.hands import (
    CARD,
    FULL,
    HAND,
    HIGH,
    LOW,
    NAMES,
    hand_columns,
    header,
    opened,
    record,
    recorded,
)
from tests.support.recording import columns as cart_columns
from tests.support.recording import header as cart_header


@pytest.fixture
def folder(tmp_path):
    return record(tmp_path / "hand")


def test_a_pack_has_penspins_layout_and_nothing_else(folder, tmp_path):
    pack(opened(folder), tmp_path / "real_data.h5")
    with h5py.File(tmp_path / "real_data.h5") as file:
        assert sorted(file) == [f"replay_demon_{i}" for i in range(4)]
        for i in range(4):
            truth, demo = hand_columns(40 + i, i), file[f"replay_demon_{i}"]
            assert sorted(demo) == ["action", "current_target_qpos", "qpos"]
            assert {(d.dtype.name, d.shape) for d in demo.values()} == {("float64", (40 + i, 16))}
            np.testing.assert_array_equal(demo["qpos"], truth["observation/proprio"][:, :16])
            np.testing.assert_array_equal(demo["current_target_qpos"], truth["sent"])
            moved = truth["sent"] - truth["observation/proprio"][:, :16]
            np.testing.assert_array_equal(demo["action"], moved)
            assert demo.attrs["source"] == b"twin"


def test_what_is_packed_comes_back(folder, tmp_path):
    pack(opened(folder), tmp_path / "real.h5")
    found = read(tmp_path / "real.h5")
    assert (found.kind, found.control_dt, len(found.keys)) == ("pack", 0.05, 4)
    written = list(unpack(found.demos(), tmp_path / "out", HAND, control_dt=0.05, card=CARD))
    assert episodes(tmp_path / "out") == written
    for before, path in zip(opened(folder), written, strict=True):
        after = Episode.open(path)
        assert check(path, card=CARD).notes == ()
        np.testing.assert_array_equal(after["sent"], before["sent"])
        np.testing.assert_array_equal(
            after["observation/proprio"][1:], before["observation/proprio"][1:]
        )
        np.testing.assert_array_equal(
            after["observation/joint_pos"], before["observation/proprio"][:, :16]
        )
        np.testing.assert_allclose(
            after["observation/fingertips"], before["observation/fingertips"], atol=1e-6
        )
        # all but the first, before which only the joints are known
        np.testing.assert_allclose(after["action"][1:], before["action"][1:], atol=2e-6)
        assert (after.header.source, after.success, after.header.card) == ("twin", True, CARD)
        assert after.header.facts["clipped"] == 0


def test_the_full_variant_carries_images_depth_points_and_the_pens_ends(tmp_path):
    head, truth = header(*FULL), hand_columns(12, 5, FULL)
    path = write_episode(tmp_path / "hand", head, truth, True)
    pack([Episode.open(path)], tmp_path / "real_full.h5", full=True)
    with h5py.File(tmp_path / "real_full.h5") as file:
        demo = file["replay_demon_0"]
        assert {k: (d.shape[1:], d.dtype.name) for k, d in demo.items()} == {
            "qpos": ((16,), "float64"),
            "action": ((16,), "float64"),
            "current_target_qpos": ((16,), "float64"),
            "rgb_ori": ((9, 16, 4), "uint8"),
            "rgb_c2d": ((8, 8, 3), "uint8"),
            "depth": ((8, 8), "uint16"),
            "pc": ((8, 8, 3), "float64"),
            "obj_ends": ((2, 3), "float32"),
        }
        np.testing.assert_array_equal(demo["depth"][:], truth["observation/depth"])
        np.testing.assert_array_equal(demo["obj_ends"][:], truth["observation/pen_ends"])
    found = read(tmp_path / "real_full.h5")
    (out,) = unpack(found.demos(), tmp_path / "out", HAND, control_dt=0.05)
    after = Episode.open(out)
    for channel in FULL[:4]:
        np.testing.assert_array_equal(after[channel.name], truth[channel.name])
    np.testing.assert_array_equal(after["observation/obj_ends"], truth["observation/pen_ends"])
    assert check(out).steps == 12


@pytest.mark.parametrize("targets", ["current_target", "current_target_qpos"])
def test_both_names_of_the_targets_are_read(tmp_path, targets):
    qpos, sent = recorded(tmp_path / "real.h5", targets)
    found = read(tmp_path / "real.h5")
    assert found.control_dt == pytest.approx(1 / 18)
    (path,) = unpack(found.demos(), tmp_path / "out", HAND, control_dt=found.control_dt)
    after = Episode.open(path)
    np.testing.assert_array_equal(after["observation/joint_pos"], qpos)
    np.testing.assert_array_equal(after["sent"], sent)
    assert after.header.source == "real"
    np.testing.assert_allclose(np.diff(after["time"]), 1 / 18)


def test_fingertips_are_computed_where_the_file_has_none(tmp_path):
    qpos, _ = recorded(tmp_path / "real.h5")
    (path,) = unpack(read(tmp_path / "real.h5").demos(), tmp_path / "out", HAND, control_dt=0.05)
    tips = Episode.open(path)["observation/fingertips"]
    np.testing.assert_allclose(tips, HAND.fingertips(qpos), atol=1e-6)
    # the thumb's tip is the last of ours, and is where the kinematics of another engine put it
    import mujoco

    model = allegro.scene().compile()
    data = mujoco.MjData(model)
    data.qpos[:16] = qpos[7]
    mujoco.mj_kinematics(model, data)
    np.testing.assert_allclose(tips[7, 3], data.site("th_tip").xpos, atol=1e-5)


@pytest.mark.parametrize("order", [[0, 3, 1, 2], [0, 1, 2, 3]])
def test_recorded_fingertips_are_taken_in_either_order_of_fingers(tmp_path, order):
    shift = np.array([0.0, 0.005, 0.0])  # upstream's palm

    def tips(qpos):
        return (HAND.fingertips(qpos)[:, order] + shift).reshape(-1, 12)

    qpos, _ = recorded(tmp_path / "real.h5", tips=tips)
    (path,) = unpack(read(tmp_path / "real.h5").demos(), tmp_path / "out", HAND, control_dt=0.05)
    found = Episode.open(path)["observation/fingertips"]
    np.testing.assert_allclose(found, HAND.fingertips(qpos) + shift, atol=1e-6)


def test_fingertips_that_the_joints_contradict_are_refused(tmp_path):
    recorded(tmp_path / "real.h5", tips=lambda q: HAND.fingertips(q).reshape(-1, 12) + 0.1)
    demos = read(tmp_path / "real.h5").demos()
    with pytest.raises(EpisodeError, match=r"finger_tip_pose: is up to 173 mm from where the join"):
        list(unpack(demos, tmp_path / "out", HAND, control_dt=0.05))


def test_targets_that_no_action_reaches_are_clipped_and_counted(tmp_path):
    with h5py.File(tmp_path / "real.h5", "w") as file:
        demo = file.create_group("replay_demon_0")
        target = np.zeros((5, 16))
        target[2:, 3] = 0.1  # 2.4 actions at once
        demo["qpos"] = demo["current_target"] = target
        demo["action"] = 0 * target
    (path,) = unpack(read(tmp_path / "real.h5").demos(), tmp_path / "out", HAND, control_dt=0.05)
    after = Episode.open(path)
    assert after.header.facts == {"unpacked": "real.h5", "group": "replay_demon_0", "clipped": 1}
    assert after["action"][2, 3] == 1.0 and np.count_nonzero(after["action"]) == 1


def bake(path, lengths=(35, 31)):
    """Write windows as PenSpin's dataset script does; return trajectories, the hardware's order."""
    truth, k = [], 0
    with h5py.File(path, "w") as file:
        for seed, steps in enumerate(lengths):
            given = hand_columns(steps, seed)
            qpos = given["observation/proprio"][:, :16].astype(np.float64)
            frames = np.concatenate((allegro.to_hora(qpos), allegro.to_hora(given["sent"])), axis=1)
            for i in range(steps - 29):
                group = file.create_group(f"episode_{k}")
                group["obs"] = frames[i : i + 3].reshape(-1)
                group["proprio_hist"] = frames[i : i + 30]
                group["finger_tip_pos"] = np.zeros(12)
                group["action"] = given["sent"][i] - qpos[i]
                k += 1
            truth.append((qpos, given["sent"]))
    return truth


def test_baked_windows_are_put_together_to_the_trajectories_that_they_were(tmp_path):
    truth = bake(tmp_path / "real_data_processed.h5")
    found = read(tmp_path / "real_data_processed.h5")
    assert (found.kind, len(found.keys)) == ("baked", 8)
    demos = list(found.demos())
    assert [demo.key for demo in demos] == ["episode_0", "episode_6"]
    for demo, (qpos, sent) in zip(demos, truth, strict=True):
        np.testing.assert_array_equal(demo.qpos, qpos)
        np.testing.assert_array_equal(demo.target, sent)
    facts = check(tmp_path / "real_data_processed.h5")
    assert (facts.episodes, facts.steps) == (2, 66)


def test_ten_trajectories_and_more_keep_their_order(tmp_path):
    with h5py.File(tmp_path / "real.h5", "w") as file:
        for i in range(12):
            demo = file.create_group(f"replay_demon_{i}")
            demo["qpos"] = demo["current_target"] = np.full((2, 16), 0.01 * i)
    assert [d.qpos[0, 0] for d in read(tmp_path / "real.h5").demos()] == [
        pytest.approx(0.01 * i) for i in range(12)
    ]


def test_the_orders_of_joints_are_those_of_the_hand():
    names = np.array(NAMES)
    assert list(allegro.to_hora(names)[list(penspin.FROM_HORA)]) == list(NAMES)
    assert tuple(allegro.from_hora(np.arange(16))) == penspin.FROM_HORA


def test_limits_of_a_card_hold_for_a_pack(tmp_path):
    recorded(tmp_path / "real.h5")
    assert check(tmp_path / "real.h5").notes == (
        "no card is given: joint limits are not checked",
        "left out: 'tactile'",
    )
    assert check(tmp_path / "real.h5", card=CARD).notes == ("left out: 'tactile'",)
    with h5py.File(tmp_path / "real.h5", "r+") as file:
        file["replay_demon_0/qpos"][4, 12] = LOW[12] - 0.1 * (HIGH[12] - LOW[12])
    check(tmp_path / "real.h5")
    with pytest.raises(EpisodeError, match=r"qpos, row 4: .* at \(12,\) is outside"):
        check(tmp_path / "real.h5", card=CARD)


def test_limits_hold_for_the_joints_that_a_policy_observes(tmp_path):
    given = hand_columns()
    given["observation/proprio"][5, 16 + 12] = HIGH[12] + 0.1 * (HIGH[12] - LOW[12])
    path = write_episode(tmp_path, header(), given, True)
    with pytest.raises(EpisodeError, match=r"observation/proprio, row 5: .* at \(28,\) is outside"):
        check(path)


def test_a_policy_finds_what_it_reads_or_is_told_what_is_missing(tmp_path):
    path = write_episode(tmp_path, header(), hand_columns(), True)
    assert check(path, card=CARD).steps == 40
    for change, complaint in (
        (
            {"inputs": (Input("x", (Feature("qpos", (16,), "rad"),)),)},
            "observation/qpos: is missing",
        ),
        (
            {"inputs": (Input("x", (Feature("proprio", (16,), "rad"),)),)},
            r"observation/proprio: is \(\(32,\), 'float32', 'rad'\), the policy reads \(\(16,\)",
        ),
        ({"actions": CARD.actions[::-1]}, "sent: is of .*, the policy commands"),
        ({"control_dt": 0.02}, "has control steps of 0.05 s, the policy 0.02 s"),
    ):
        with pytest.raises(EpisodeError, match=complaint):
            check(path, card=dataclasses.replace(CARD, **change))


def test_the_card_of_another_order_of_joints_is_refused(tmp_path):
    recorded(tmp_path / "real.h5")
    other = dataclasses.replace(CARD, actions=CARD.actions[::-1])
    with pytest.raises(ValueError, match="the card commands"):
        list(
            unpack(
                read(tmp_path / "real.h5").demos(),
                tmp_path / "o",
                HAND,
                control_dt=0.05,
                card=other,
            )
        )


def test_episodes_of_no_hand_are_not_packed(tmp_path):
    cart = write_episode(tmp_path / "cart", cart_header(), cart_columns(3), True)
    with pytest.raises(
        EpisodeError, match=r"observation/joint_pos: is missing: an Allegro hand's 16"
    ):
        pack([Episode.open(cart)], tmp_path / "real.h5")
    head = Header.of_card(dataclasses.replace(CARD, control_dt=0.04), source="sim", robot="allegro")
    other = [write_episode(tmp_path / "hand", h, hand_columns(3), True) for h in (header(), head)]
    with pytest.raises(ValueError, match=r"different control steps, \[0.04, 0.05\] s"):
        pack([Episode.open(path) for path in other], tmp_path / "real.h5")
    with pytest.raises(ValueError, match="no episode to pack"):
        pack([], tmp_path / "real.h5")
    assert not (tmp_path / "real.h5").exists()


def test_a_pack_is_whole_or_absent(folder, tmp_path, monkeypatch):
    real, calls = os.pwrite, []

    def pwrite(*args):
        calls.append(args)
        if len(calls) == fail_at:
            raise OSError(28, "No space left on device")
        return real(*args)

    monkeypatch.setattr(os, "pwrite", pwrite)
    fail_at = 0
    pack(opened(folder), tmp_path / "whole.h5")
    for k in range(1, len(calls) + 1, 15):
        calls.clear()
        fail_at = k
        with pytest.raises(OSError, match="No space left"):
            pack(opened(folder), tmp_path / "real.h5")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["hand", "whole.h5"]
    with pytest.raises(FileExistsError, match=r"whole\.h5 exists already"):
        fail_at = 0
        pack(opened(folder), tmp_path / "whole.h5")
