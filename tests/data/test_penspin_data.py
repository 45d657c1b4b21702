"""PenSpin's files: what is packed comes back, what its scripts wrote is read, joints in order."""

import dataclasses
import json
import os
import pathlib

import h5py
import numpy as np
import pytest
import torch

from penspin_style import __main__ as command_line
from penspin_style.data import penspin
from penspin_style.data.check import check, verify
from penspin_style.data.episode import (
    Channel,
    Episode,
    EpisodeError,
    Header,
    Recorder,
    episodes,
    write_episode,
)
from penspin_style.data.penspin import Hand, pack, read, unpack
from penspin_style.features import ActionChannel, Feature, Input, Joint, PolicyCard
from tasks.robots import allegro
from tests.data.recording import columns as cart_columns
from tests.data.recording import header as cart_header

NAMES = allegro.JOINTS
LOW, HIGH = np.array(allegro.LOWER), np.array(allegro.UPPER)
HAND = Hand(NAMES, lambda qpos: allegro.fingertips(torch.from_numpy(qpos)).numpy())
CARD = PolicyCard(
    task="pen_spin_student",
    inputs=(
        Input(
            "student",
            (Feature("proprio", (32,), "rad", history=30), Feature("fingertips", (4, 3), "m")),
        ),
    ),
    actions=tuple(
        ActionChannel(n, "rad", 1 / 24, lo, hi, "delta")
        for n, lo, hi in zip(NAMES, allegro.LOWER, allegro.UPPER, strict=True)
    ),
    joints=tuple(
        Joint(n, "rad", lo, hi, 3.0, 0.1, 0.0)
        for n, lo, hi in zip(NAMES, allegro.LOWER, allegro.UPPER, strict=True)
    ),
    control_dt=0.05,
)
FULL = (
    Channel("observation/rgb_ori", (9, 16, 4), "uint8"),
    Channel("observation/rgb_c2d", (8, 8, 3), "uint8"),
    Channel("observation/depth", (8, 8), "uint16", "mm"),
    Channel("observation/pc", (8, 8, 3), "float64", "m"),
    Channel("observation/pen_ends", (2, 3), "float32", "m"),
)


def header(*more, source="twin"):
    return Header.of_card(CARD, source=source, robot="allegro", more=more)


def hand_columns(steps=40, seed=0, more=()):
    """A hand that follows random actions, measured with an error."""
    rng = np.random.default_rng(seed)
    action = rng.uniform(-1, 1, (steps, 16)).astype(np.float32)
    target = (LOW + HIGH) / 2 + np.cumsum(action / 24, axis=0, dtype=np.float64)
    qpos = (target + rng.normal(0, 0.01, target.shape)).astype(np.float32)
    last = np.concatenate(((LOW + HIGH)[None] / 2, target[:-1]))
    out = {
        "time": 0.05 * np.arange(steps),
        "observation/proprio": np.concatenate((qpos, last), axis=1).astype(np.float32),
        "observation/fingertips": HAND.fingertips(qpos.astype(np.float64)).astype(np.float32),
        "action": action,
        "target": target,
        "sent": target,
    }
    for channel in more:
        shape = (steps, *channel.shape)
        whole = channel.dtype.startswith("uint")
        drawn = rng.integers(0, 250, shape) if whole else rng.normal(size=shape)
        out[channel.name] = drawn.astype(channel.dtype)
    return out


@pytest.fixture
def folder(tmp_path):
    """Three successes and a failure, of 40 to 43 steps."""
    for i in range(4):
        write_episode(tmp_path / "hand", header(), hand_columns(40 + i, i), i != 2)
    return tmp_path / "hand"


def opened(folder):
    return [Episode.open(path) for path in episodes(folder)]


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


def test_the_full_variant_carries_pictures_depth_points_and_the_pens_ends(tmp_path):
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


def recorded(path, targets="current_target", tips=None, steps=40):
    """Write a file as PenSpin's recording script does; return what is in it."""
    truth = hand_columns(steps, 9)
    qpos = truth["observation/proprio"][:, :16].astype(np.float64)
    with h5py.File(path, "w") as file:
        demo = file.create_group("replay_demon_0")
        demo["qpos"], demo["action"], demo[targets] = qpos, truth["sent"] - qpos, truth["sent"]
        demo.create_dataset("tactile", data=np.zeros((0,)))
        if tips is not None:
            demo["finger_tip_pose"] = tips(qpos)
    return qpos, truth["sent"]


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
    assert check(tmp_path / "real.h5").notes == ("no card is given: joint limits are not checked",)
    assert check(tmp_path / "real.h5", card=CARD).notes == ()
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


# The command line.


@pytest.fixture
def penspin_data(capsys, monkeypatch):
    """Run `penspin data`; return the exit code and what it said."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])

    def run(*words):
        code = command_line.main(["data", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def test_verify_says_which_files_can_be_trusted(folder, tmp_path, penspin_data):
    code, out, err = penspin_data("verify", folder)
    assert (code, err) == (0, "") and "4 of 4 files can be trusted, 166 steps" in out
    bad = episodes(folder)[1]
    with h5py.File(bad, "r+") as file:
        file["sent"][3] += 1e-9
    code, out, err = penspin_data("verify", folder)
    assert code == 3 and "3 of 4 files can be trusted, 125 steps" in out
    assert err == f"BAD   {bad}: sent: does not match its checksum\n"
    code, out, err = penspin_data("verify", folder, "--json")
    said = json.loads(out)
    assert (code, err, len(said["files"])) == (3, "", 3)
    fault = {"file": str(bad), "key": "sent", "row": None, "what": "does not match its checksum"}
    assert said["faults"] == [fault] and said["unfinished"] == {}


def test_verify_tells_what_a_killed_recorder_left_from_what_is_being_recorded(folder, penspin_data):
    with Recorder(folder, header()) as living:
        given = hand_columns(1)
        living.append({name: column[0] for name, column in given.items()})
        while not list(folder.glob(".stage-*")):
            pass
        (folder / ".stage-dead.h5").write_bytes(b"half")
        code, out, _ = penspin_data("verify", folder)
    assert code == 0 and "4 of 4 files" in out
    assert f"{folder}/.stage-dead.h5: was cut off; the next recorder removes it\n" in out
    assert out.count("is being recorded") == 1


def test_verify_takes_a_policys_card(folder, tmp_path, penspin_data):
    (tmp_path / "policy").mkdir()
    file = tmp_path / "policy" / "card.json"
    file.write_text(CARD.to_json())
    for word in (tmp_path, file):  # a run's folder, the card itself
        assert penspin_data("verify", folder, "--card", word)[0] == 0
    file.write_text(dataclasses.replace(CARD, control_dt=0.01).to_json())
    code, _, err = penspin_data("verify", folder, "--card", file)
    assert code == 3 and err.count("has control steps of 0.05 s, the policy 0.01 s") == 4
    code, _, err = penspin_data("verify", folder, "--card", folder)
    assert code == 2 and "is no .onnx file and holds no card.json" in err


def test_info_lists_files_and_columns(folder, penspin_data):
    code, out, _ = penspin_data("info", folder)
    assert code == 0 and "4 files, 166 steps, 8.3 s" in out
    assert out.count("observation/proprio     (32,) float32 [rad]") == 1  # all have the same
    code, out, _ = penspin_data("info", episodes(folder)[2], "--json")
    (facts,) = json.loads(out)["files"]
    assert (facts["success"], facts["steps"], facts["source"]) == (False, 42, "twin")


def test_pack_and_unpack_by_command(folder, tmp_path, penspin_data):
    code, out, _ = penspin_data("pack", folder, tmp_path / "real.h5")
    assert (code, out) == (
        0,
        f"3 episodes in {tmp_path}/real.h5; 1 that were no success left out\n",
    )
    code, out, _ = penspin_data("unpack", tmp_path / "real.h5", tmp_path / "out")
    assert (code, out) == (0, f"3 episodes in {tmp_path}/out, 20 Hz\n")
    assert all(v.fault is None for v in verify(episodes(tmp_path / "out")))
    tips = Episode.open(episodes(tmp_path / "out")[0])["observation/fingertips"]
    np.testing.assert_allclose(tips, hand_columns()["observation/fingertips"], atol=1e-6)
    code, _, err = penspin_data("unpack", tmp_path / "real.h5", tmp_path / "out")
    assert code == 2 and "is not an empty folder" in err
    code, _, err = penspin_data("pack", folder, tmp_path / "real.h5", "--all")
    assert code == 2 and "exists already" in err
    recorded(tmp_path / "theirs.h5")
    code, out, _ = penspin_data("unpack", tmp_path / "theirs.h5", tmp_path / "b", "--rate", "20")
    assert (code, out) == (0, f"1 episodes in {tmp_path}/b, 20 Hz\n")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["verify", "absent"], "absent does not exist"),
        (["info", "tests/data/.."], "holds no .h5 files"),
        (["pack", "absent", "out.h5"], "absent is not a folder"),
        (["pack", "{hand}", "out.zip"], "out.zip must end in .h5"),
        (["pack", "{hand}", "absent/out.h5"], "the folder absent does not exist"),
        (["repair", "absent", "{hand}/new"], "absent does not exist"),
        (["repair", "{hand}", "{hand}"], "is not an empty folder"),
        (
            ["convert", "{hand}", "x", "--to", "robomimic", "--fps", "3"],
            "--fps is for --to lerobot",
        ),
        (["unpack", "{pack}", "{hand}/new", "--hand", "alegro"], "did you mean allegro?"),
        (["unpack", "{pack}", "{hand}/new", "--hand", "panda"], "it has no JOINTS, fingertips"),
    ],
)
def test_words_that_cannot_be_meant(folder, tmp_path, penspin_data, words, complaint):
    recorded(tmp_path / "real.h5")
    words = [w.format(hand=folder, pack=tmp_path / "real.h5") for w in words]
    code, _, err = penspin_data(*words)
    assert code == 2 and complaint in err and err.startswith("penspin: ") and err.count("\n") == 1


@pytest.mark.parametrize("words", [["verify"], ["convert", "a", "b", "--to", "mp4"], ["unpack"]])
def test_words_that_are_missing(words, penspin_data):
    with pytest.raises(SystemExit) as ended:
        penspin_data(*words)
    assert ended.value.code == 2


def test_repair_of_a_folder_copies_what_is_whole_and_leaves_the_source(
    folder, tmp_path, penspin_data
):
    first, second, third, fourth = episodes(folder)
    os.truncate(first, 5000)
    with h5py.File(third, "r+") as file:
        file["observation/proprio"][1, 1] += 1
    (folder / ".stage-dead.h5").write_bytes(b"half")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    code, out, _ = penspin_data("repair", folder, tmp_path / "new", "--json")
    said = json.loads(out)
    assert code == 0 and {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert list(said["kept"]) == [second.name, fourth.name]
    assert [p.name for p in episodes(tmp_path / "new")] == [second.name, fourth.name]
    for path in (second, fourth):
        assert (tmp_path / "new" / path.name).read_bytes() == path.read_bytes()
    assert said["lost"][third.name] == "observation/proprio: does not match its checksum"
    assert said["lost"][first.name].startswith("is damaged or unreadable: ")
    assert said["lost"][".stage-dead.h5"] == "was cut off before it was whole"


def test_repair_of_a_pack_keeps_the_whole_trajectories(folder, tmp_path, penspin_data):
    pack(opened(folder), tmp_path / "real.h5")
    with h5py.File(tmp_path / "real.h5", "r+") as file:
        del file["replay_demon_0"]  # a gap
        file["replay_demon_2/qpos"][5, 5] = np.nan
    before = (tmp_path / "real.h5").read_bytes()
    code, out, err = penspin_data("repair", tmp_path / "real.h5", tmp_path / "new")
    assert code == 0 and (tmp_path / "real.h5").read_bytes() == before
    assert "2 kept" in out and "1 lost" in out
    assert "lost  replay_demon_2: replay_demon_2/qpos: does not match its checksum" in err
    sent = [Episode.open(path)["sent"] for path in episodes(tmp_path / "new")]
    np.testing.assert_array_equal(sent[0], hand_columns(41, 1)["sent"])
    np.testing.assert_array_equal(sent[1], hand_columns(43, 3)["sent"])


def test_a_pack_that_was_cut_off_gives_back_what_lies_before_the_cut(tmp_path, penspin_data):
    head = header(*FULL)
    for i in range(4):
        write_episode(tmp_path / "hand", head, hand_columns(40 + i, i, FULL), True)
    pack(opened(tmp_path / "hand"), tmp_path / "real.h5", full=True)
    os.truncate(tmp_path / "real.h5", int(0.6 * (tmp_path / "real.h5").stat().st_size))
    assert penspin_data("verify", tmp_path / "real.h5")[0] == 3
    code, out, _ = penspin_data("repair", tmp_path / "real.h5", tmp_path / "new", "--json")
    said = json.loads(out)
    assert code == 0 and len(said["kept"]) in (1, 2) and len(said["kept"]) + len(said["lost"]) == 4
    for i, path in enumerate(episodes(tmp_path / "new")):
        assert check(path).steps == 40 + i
        truth = hand_columns(40 + i, i, FULL)
        np.testing.assert_array_equal(Episode.open(path)["sent"], truth["sent"])
        np.testing.assert_array_equal(
            Episode.open(path)["observation/depth"], truth["observation/depth"]
        )


def test_where_nothing_can_be_rescued_repair_says_so(tmp_path, penspin_data):
    (tmp_path / "real.h5").write_bytes(b"<html>")
    code, out, err = penspin_data("repair", tmp_path / "real.h5", tmp_path / "new")
    assert code == 3 and "0 kept" in out
    assert err == "lost  real.h5: is not an HDF5 file\n"


def test_convert_writes_a_dataset_of_robomimic(folder, tmp_path, penspin_data):
    code, out, _ = penspin_data("convert", folder, tmp_path / "x.hdf5", "--to", "robomimic")
    assert (code, out) == (0, f"4 episodes in {tmp_path}/x.hdf5, as robomimic reads them\n")
    with h5py.File(tmp_path / "x.hdf5") as file:
        assert file["data"].attrs["total"] == 166
        np.testing.assert_array_equal(file["data/demo_0/actions"], hand_columns()["action"])
