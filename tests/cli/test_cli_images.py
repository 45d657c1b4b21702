"""The command line's verbs around images: what they leave behind and what they report."""

import json
import pathlib

import numpy as np
import pytest
import torch
from PIL import Image

from penspin_style.data.rollouts import LABEL, Rollouts
from penspin_style.nets.encoder import NatureCNN, load_encoder
from penspin_style.nets.policy import load_policy
from penspin_style.render.gl_renderer import NoOpenGLError, choose_platform
from tests.support.terminal import call, check_refusal

SHIPPED = pathlib.Path(__file__).parents[2] / "outputs" / "pretrained"
STUDENT, TEACHER = SHIPPED / "panda_lift_cube_vision", SHIPPED / "panda_lift_cube"
IMAGES = ("front_rgb", "front_depth", "wrist_rgb", "wrist_depth")


def report(line, capfd):
    """Run a line with --json; return the one object that it prints."""
    assert call(f"{line} --json") == 0
    return json.loads(capfd.readouterr().out)


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """The shipped teacher's first ten steps in four environments that also render images."""
    folder = tmp_path_factory.mktemp("recording") / "rows"
    argv = "task=panda_lift_cube_vision task.episode_length=10 --episodes 8 --num-envs 4 --seed 5"
    assert call(f"record {TEACHER} {folder} {argv}") == 0
    return Rollouts(folder)


def test_a_recording_holds_what_was_seen_and_what_the_policy_did_there(recording):
    assert (recording.rows, recording.shards) == (80, 20)  # two times ten steps of four
    assert [i.name for i in recording.inputs] == ["teacher", "student", *IMAGES]
    assert recording.facts["task"] == "panda_lift_cube_vision" and recording.facts["seed"] == 5
    policy, card = load_policy(TEACHER / "policy")
    assert recording.facts["policy"] == card.run
    for index in (0, 19):
        rows = recording.shard(index)
        with torch.no_grad():
            torch.testing.assert_close(rows[LABEL], policy.act(rows["teacher"]))
    assert rows["front_rgb"].float().std() > 0 and (rows["front_depth"] > 0).any()


def test_without_a_task_a_policy_is_recorded_in_its_own(tmp_path, capfd):
    line = f"record {STUDENT} {tmp_path / 'rows'} task.episode_length=2 --episodes 2 --num-envs 2"
    said = report(line, capfd)
    assert said == {"folder": str(tmp_path / "rows"), "rows": 4, "shards": 2}
    assert Rollouts(tmp_path / "rows").facts["task"] == "panda_lift_cube_vision"


def test_an_encoder_is_trained_on_a_recording(recording, tmp_path, capfd):
    out = tmp_path / "encoder"
    said = report(f"pretrain {recording.folder} --out {out} --epochs 2 --seed 4", capfd)
    assert said["encoder"] == str(out)
    assert said["recipe"]["epochs"] == 2 and said["recipe"]["seed"] == said["seed"] == 4
    assert said["cameras"] == ["front_rgb", "wrist_rgb"]
    assert (said["train_rows"], said["test_rows"]) == (76, 4)
    state, card = load_encoder(out)
    assert {"encoder": str(out), **card} == said
    NatureCNN(32, 32, pool=False, rng=torch.Generator()).load_state_dict(state)
    again = call(f"pretrain {recording.folder} --out {out} --epochs 2")
    check_refusal(again, *capfd.readouterr(), 2, f"{out} exists already")


def test_a_recording_without_images_trains_no_encoder(tmp_path, capfd):
    argv = "task.episode_length=20 --episodes 2 --num-envs 2"
    assert call(f"record {TEACHER} {tmp_path / 'rows'} {argv}") == 0
    capfd.readouterr()
    code = call(f"pretrain {tmp_path / 'rows'} --out {tmp_path / 'new'}")
    check_refusal(code, *capfd.readouterr(), 2, "must hold colour images of one size")
    assert not (tmp_path / "new").exists()


def test_images_per_second_are_reported_for_both_contenders(capfd):
    line = "bench render task=panda_lift_cube_vision num_envs=4 --rounds 2 --steps 1"
    said = report(line, capfd)
    assert (said["num_envs"], said["views"]) == (4, 2)
    for name in ("render", "threads", "bare"):
        low, median, high = said[f"{name}_frames_per_s"]
        assert 0 < low <= median <= high
    assert said["ratio_spread"][0] <= said["ratio"] <= said["ratio_spread"][1]


def test_the_time_of_an_action_is_reported(capfd):
    said = report(f"bench onnx {STUDENT / 'policy.onnx'} --calls 30", capfd)
    assert said["calls"] == 30
    assert 0 < said["p50_ms"] <= said["p99_ms"] <= said["max_ms"]


def test_an_image_that_is_blanked_is_not_seen(capfd):
    line = f"eval {STUDENT} task.episode_length=12 --episodes 3"
    seeing = report(line, capfd)
    assert report(line, capfd) == seeing
    blind = report(f"{line} --blank {' '.join(IMAGES)}", capfd)
    assert blind["episodes"] == seeing["episodes"] == 3
    assert blind["return"] != seeing["return"]


def test_the_tolerance_decides_what_is_exported(tmp_path, capfd):
    line = f"export {TEACHER} --samples 200 --out {tmp_path / 'x.onnx'}"
    code = call(f"{line} --tolerance 1e-12")
    check_refusal(code, *capfd.readouterr(), 2, "more than 1.0e-12")
    assert list(tmp_path.iterdir()) == []
    said = report(f"{line} --tolerance 1e-4", capfd)
    assert 1e-12 < said["max_abs_diff"] < 1e-4 and (tmp_path / "x.onnx").exists()


def test_what_the_student_sees_is_cut_from_its_video(tmp_path, capfd):
    try:
        choose_platform()
    except NoOpenGLError as error:
        pytest.skip(str(error))
    video, views = tmp_path / "x.mp4", tmp_path / "views.png"
    flags = f"--video {video} --views {views} --episodes 1 --size 160"
    said = report(f"play {STUDENT} task.episode_length=6 {flags}", capfd)
    assert said == {"video": str(video), "strip": None, "views": str(views), "frames": 6}
    assert video.stat().st_size > 0
    page = np.asarray(Image.open(views))
    assert page.shape == (6 * 32, 4 * 32 + 3 * 2, 3)  # six times four images, two pixels apart
    front_depth = page[:32, 34:66]
    assert (front_depth == front_depth[..., :1]).all() and front_depth.std() > 0  # grey
    assert not (page[:32] == page[-32:]).all()  # the arm has moved
