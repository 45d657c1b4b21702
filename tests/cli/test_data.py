"""penspin data: what each verb does, says and refuses, and its exit codes."""

import dataclasses
import json
import os
import pathlib

import h5py
import numpy as np
import pytest

from penspin_style import __main__ as command_line
from penspin_style.data.check import check, verify
from penspin_style.data.episodes.episode import Episode, Recorder, episodes, write_episode
from penspin_style.data.formats.penspin import pack
from tests.support.hands import CARD, FULL, hand_columns, header, opened, record, recorded


@pytest.fixture
def folder(tmp_path):
    return record(tmp_path / "hand")


@pytest.fixture
def penspin_data(capsys, monkeypatch):
    """Run `penspin data`; return the exit code and what it said."""
    monkeypatch.chdir(pathlib.Path(__file__).parents[2])

    def run(*argv):
        code = command_line.main(["data", *map(str, argv)])
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
    ("argv", "complaint"),
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
        (
            ["unpack", "{pack}", "{hand}/new", "--hand", "panda"],
            "it has no ACTION_SCALE, fingertips",
        ),
    ],
)
def test_an_invalid_command_line_exits_with_2(folder, tmp_path, penspin_data, argv, complaint):
    recorded(tmp_path / "real.h5")
    argv = [w.format(hand=folder, pack=tmp_path / "real.h5") for w in argv]
    code, _, err = penspin_data(*argv)
    assert code == 2 and complaint in err and err.startswith("penspin: ") and err.count("\n") == 1


@pytest.mark.parametrize("argv", [["verify"], ["convert", "a", "b", "--to", "mp4"], ["unpack"]])
def test_missing_arguments_are_named(argv, penspin_data):
    with pytest.raises(SystemExit) as ended:
        penspin_data(*argv)
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


# What is left out, and what contradicts itself.


def spoilt(path, tmp_path):
    """A pack of four trajectories, two of them bad."""
    pack(opened(record(tmp_path / "four")), path)
    with h5py.File(path, "r+") as file:
        del file["replay_demon_0/qpos"].attrs["sha256"]
        file["replay_demon_0/qpos"][5, 5] = np.nan
        del file["replay_demon_2/current_target_qpos"]
    return path


def test_unpack_names_the_bad_trajectories_and_writes_the_others(tmp_path, penspin_data):
    real = spoilt(tmp_path / "real.h5", tmp_path)
    faults = {
        "replay_demon_0": "replay_demon_0/qpos, row 5: nan at (5,) is not finite",
        "replay_demon_2": "replay_demon_2/current_target_qpos or current_target: is missing",
    }
    code, out, err = penspin_data("unpack", real, tmp_path / "out")
    assert code == 3
    assert out == f"2 episodes in {tmp_path}/out, 20 Hz; 2 that cannot be trusted left out\n"
    assert err == "".join(f"penspin: {real}: {why}; it is left out\n" for why in faults.values())
    sent = [Episode.open(path)["sent"] for path in episodes(tmp_path / "out")]
    np.testing.assert_array_equal(sent[0], hand_columns(41, 1)["sent"])
    np.testing.assert_array_equal(sent[1], hand_columns(43, 3)["sent"])
    code, out, _ = penspin_data("unpack", real, tmp_path / "json", "--json")
    assert code == 3 and json.loads(out)["left_out"] == faults


def test_unpack_writes_nothing_where_no_trajectory_is_whole(tmp_path, penspin_data):
    recorded(tmp_path / "real.h5")
    with h5py.File(tmp_path / "real.h5", "r+") as file:
        file["replay_demon_0/qpos"][5, 5] = np.inf
    code, out, err = penspin_data("unpack", tmp_path / "real.h5", tmp_path / "out")
    assert (code, out) == (3, "") and "replay_demon_0/qpos, row 5: inf" in err
    assert not (tmp_path / "out").exists()


def test_what_a_pack_holds_beside_trajectories_is_named(tmp_path, penspin_data):
    real = tmp_path / "real.h5"
    recorded(real)
    code, out, _ = penspin_data("verify", real)
    assert code == 0 and out.startswith("good  ") and "; left out: 'tactile'\n" in out
    assert "; left out: 'tactile'\n" in penspin_data("info", real)[1]
    code, out, err = penspin_data("unpack", real, tmp_path / "out")
    assert (code, err) == (0, f"penspin: {real}: left out: 'tactile'\n")


def test_a_rate_that_contradicts_the_files_or_the_cards_is_said(folder, tmp_path, penspin_data):
    real, card = tmp_path / "real.h5", tmp_path / "card.json"
    pack(opened(folder), real)
    code, _, err = penspin_data("unpack", real, tmp_path / "a", "--rate", "30")
    assert (code, err) == (0, f"penspin: {real}: the file says 20 Hz, --rate 30 is taken\n")
    assert penspin_data("unpack", real, tmp_path / "b", "--rate", "20")[2] == ""
    card.write_text(dataclasses.replace(CARD, control_dt=0.1).to_json())
    code, out, _ = penspin_data("verify", real, "--card", card)
    said = "control steps of 0.05 s, the policy has 0.1 s\n"
    assert code == 0 and f"; {said}" in out
    code, _, err = penspin_data("unpack", real, tmp_path / "c", "--card", card)
    assert (code, err) == (0, f"penspin: {real}: {said}")
    code, _, err = penspin_data("unpack", real, tmp_path / "d", "--card", card, "--rate", "10")
    assert (code, err) == (0, f"penspin: {real}: the file says 20 Hz, --rate 10 is taken\n")


# What comes from a file and goes to a terminal.

EVIL = "\x1b]0;owned\x07\x1b[2J"


def test_no_name_in_a_file_reaches_the_terminal_as_a_command(folder, tmp_path, penspin_data):
    bad = folder / f"episode{EVIL}.h5"
    bad.write_bytes(b"half")
    with h5py.File(folder / "other.h5", "w") as file:
        file[f"a{EVIL}\u202e"] = 1
    with h5py.File(folder / "pack.h5", "w") as file:
        file.create_group("replay_demon_0")
        file[EVIL] = 1
    for argv in (["verify", folder], ["repair", folder, tmp_path / "new"]):
        code, out, err = penspin_data(*argv)
        assert code in (0, 3) and r"episode\x1b]0;owned\x07\x1b[2J.h5: is not an HDF5 file" in err
        assert (out + err).replace("\n", "").isprintable()
    assert (folder / bad.name).exists()
    code, _, err = penspin_data("info", bad)
    assert code == 3 and err.count("\n") == 1 and err.replace("\n", "").isprintable()


def test_what_has_an_episodes_name_and_is_no_file_is_named(folder, penspin_data):
    os.mkfifo(folder / "pipe.h5")
    (folder / "gone.hdf5").symlink_to("nowhere")
    (folder / "endless.h5").symlink_to("/dev/zero")
    code, out, err = penspin_data("verify", folder)
    assert code == 3 and "4 of 7 files can be trusted" in out
    assert f"BAD   {folder}/pipe.h5: is not a file\n" in err
    assert f"BAD   {folder}/endless.h5: is not a file\n" in err
    assert f"BAD   {folder}/gone.hdf5: is damaged or unreadable: " in err
    code, _, err = penspin_data("unpack", folder / "pipe.h5", folder / "out")
    assert code == 3 and "is not a file" in err
    code, _, err = penspin_data("repair", folder / "pipe.h5", folder / "out")
    assert (code, err) == (3, "lost  pipe.h5: is not a file\n")


def test_a_card_that_is_a_pipe_or_has_no_end_is_not_waited_for(folder, tmp_path, penspin_data):
    (tmp_path / "card.json").symlink_to("/dev/zero")
    code, _, err = penspin_data("verify", folder, "--card", tmp_path / "card.json")
    assert code == 2 and "holds no card.json" in err
    (tmp_path / "deep.json").write_text("[" * 100_000)
    code, _, err = penspin_data("verify", folder, "--card", tmp_path / "deep.json")
    assert code == 2 and "nested more than 64 deep" in err and err.count("\n") == 1


def test_the_child_that_verifies_imports_no_module_of_the_current_folder(
    folder, tmp_path, monkeypatch
):
    for name in ("h5py", "numpy", "json", "resource"):
        (tmp_path / f"{name}.py").write_text("import os\nos.mkdir('imported')\n")
    monkeypatch.chdir(tmp_path)
    assert all(v.fault is None for v in verify(episodes(folder)))
    assert not (tmp_path / "imported").exists()
