"""Videos of a training's evaluations, drawn beside it."""

import subprocess
import types

import av
import pytest

from penspin_style.__main__ import main
from penspin_style.cli.run_videos import EvaluationVideos
from penspin_style.nets.policy import load_policy
from tests.support.small_run import SMALL, make


@pytest.fixture
def started(monkeypatch):
    """What is started instead of a renderer; `code` is how it ends, None while it draws."""
    lines = []

    class Process:
        def __init__(self, line, **options):
            lines.append(types.SimpleNamespace(line=line, code=0, text=""))
            self.told = lines[-1]

        @property
        def returncode(self):
            return self.told.code

        def poll(self):
            return self.told.code

        def communicate(self, timeout=None):
            return "", self.told.text

    monkeypatch.setattr(subprocess, "Popen", Process)
    return lines


@pytest.fixture
def begun(tmp_path):
    """Make a run that is not trained, and give its folder free at the end."""
    runs = []

    def begin(*overrides):
        runs.append(make(tmp_path, *overrides))
        return runs[-1]

    yield begin
    for run in runs:
        run._lock.close()


def evaluated(run, iteration):
    run.iteration = run.scored = iteration
    run.samples = 128 * iteration


def test_each_nth_evaluation_is_drawn_from_its_own_weights(begun, started):
    run = begun("video_every=2", "video_tiles=3", "video_fps=10")
    videos = EvaluationVideos(run)
    for iteration in (2, 4, 6, 8):  # an evaluation every two iterations
        evaluated(run, iteration)
        videos()
    run.iteration = 10  # not evaluated
    videos()
    assert [call.line[call.line.index("--video") + 1] for call in started] == [
        str(run.folder / "videos" / f"{samples}.mp4") for samples in (512, 1024)
    ]
    line = started[0].line
    assert line[line.index("--tiles") :][:2] == ["--tiles", "3"]
    assert "--info" in line and line[-2:] == ["--fps", "10"]
    policy, card = load_policy(run.folder / "videos" / ".stage-1024")
    assert card.run.endswith("samples1024")
    for name, weights in run.algo.policy.state_dict().items():
        assert (policy.state_dict()[name] == weights).all()
    videos.finish()
    assert not list((run.folder / "videos").iterdir())


def test_one_is_drawn_at_a_time_and_what_failed_is_told(begun, started):
    run = begun("video_every=1")
    videos = EvaluationVideos(run)
    evaluated(run, 2)
    videos()
    started[0].code = None
    evaluated(run, 4)
    videos()
    assert len(started) == 1
    assert videos.notes() == ["1 evaluation has no video: the last one was still being drawn"]
    started[0].code, started[0].text = 2, "Traceback\npenspin: no video: no OpenGL\n"
    evaluated(run, 6)
    videos()
    assert len(started) == 2
    why = "exit code 2: no video: no OpenGL"
    assert videos.notes()[0] == f"a video of an evaluation is missing: {why}"


def test_a_training_leaves_videos_of_its_evaluations(tmp_path, capsys):
    own = ("task=panda_lift_cube", f"out={tmp_path}", "name=a", "task.episode_length=6")
    own += ("total_samples=256", "video_every=1", "video_tiles=2")
    assert main(["train", *SMALL, *own]) == 0
    [video] = (tmp_path / "panda_lift_cube/a/videos").iterdir()
    assert video.name == "256.mp4"
    with av.open(str(video)) as file:
        images = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    assert len(images) >= 6 and images[0].shape == (240, 480, 3)
    assert abs(images[0].astype(int) - images[-1].astype(int)).max() > 30


@pytest.mark.parametrize(
    "words", [["video_every=-1"], ["video_every=1", "eval_every=0"], ["video_fps=0"]]
)
def test_settings_that_make_no_video_are_one_line(words, tmp_path, capsys):
    assert main(["train", "task=panda_lift_cube", f"out={tmp_path}", *words]) == 2
    said = capsys.readouterr().err
    assert words[0].split("=")[0] in said and said.count("\n") == 1
