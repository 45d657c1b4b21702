"""The shell scripts: which arguments they hand to the command line."""

import os
import pathlib
import re
import shlex
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def argv(tmp_path):
    """Run a script with a `penspin` that only writes down what it is told."""
    told = tmp_path / "told"
    stub = tmp_path / "bin" / "penspin"
    stub.parent.mkdir()
    stub.write_text(f'#!/bin/sh\nfor word in "$@"; do echo "$word"; done > {told}\n')
    stub.chmod(0o755)
    for name in ("scripts", "setup.cfg"):
        (tmp_path / name).symlink_to(ROOT / name)
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    env |= {"PENSPIN_SKIP_INSTALL": "1", "PATH": f"{stub.parent}:{env['PATH']}"}

    def run(line, code=0, **extra):
        command = ["bash", *shlex.split(f"scripts/{line}")]
        done = subprocess.run(
            command, cwd=tmp_path, env={**env, **extra}, capture_output=True, text=True, timeout=20
        )
        assert done.returncode == code, done.stderr
        return told.read_text().splitlines() if code == 0 else done.stderr

    return run


def test_a_teacher_is_of_the_pen_unless_another_task_is_named(argv):
    own = ["device=cuda:1", "seed=42", "name=mine"]
    assert argv("train_teacher.sh 1 42 mine") == ["train", "task=pen_spin", *own]
    assert argv("train_teacher.sh 1 42 mine algo.gamma=0.9 task=reach resume=true") == [
        *("train", *own, "algo.gamma=0.9", "task=reach", "resume=true")
    ]
    assert argv("train_teacher.sh cpu 42 mine task.lag=0 ablation=no_tactile") == [
        *("train", "task=pen_spin", "device=cpu", *own[1:], "task.lag=0", "ablation=no_tactile")
    ]
    assert "usage: scripts/train_teacher.sh GPU SEED NAME" in argv("train_teacher.sh 0 42", 2)


def test_a_student_is_of_the_pen_unless_another_task_is_named(argv):
    assert argv("train_student_sim.sh") == ["train", "task=pen_spin_student"]
    own = ["student=dagger_proprio", "algo.teacher=a b"]
    assert argv("train_student_sim.sh student=dagger_proprio 'algo.teacher=a b'") == [
        *("train", "task=pen_spin_student", *own)
    ]
    assert argv("train_student_sim.sh name=x task=reach") == ["train", "name=x", "task=reach"]


def test_teachers_of_aloha_go_on_where_they_were_and_know_their_pick(argv, tmp_path):
    own = ["device=cpu", "seed=3", "name=mine"]
    told = argv("train_aloha.sh pick cpu 3 mine total_samples=9")
    taught = ["train", "task=aloha_pick", *own, "algo=distill"]
    assert told == [*taught, "total_samples=9"]
    (tmp_path / "outputs" / "aloha_pick" / "mine" / "checkpoints").mkdir(parents=True)
    assert argv("train_aloha.sh pick cpu 3 mine") == [*taught, "resume=true"]
    insertion = ["train", "task=aloha_peg_insertion", *own, "algo=distill"]
    shipped = [*insertion, "task.pick_policy=pretrained:aloha_pick"]
    assert argv("train_aloha.sh insertion cpu 3 mine") == shipped
    (tmp_path / "outputs" / "aloha_pick" / "mine" / "policy").mkdir(parents=True)
    (tmp_path / "outputs" / "aloha_peg_insertion" / "mine" / "checkpoints").mkdir(parents=True)
    pick = "task.pick_policy=outputs/aloha_pick/mine"
    assert argv("train_aloha.sh insertion cpu 3 mine") == [*insertion, pick, "resume=true"]
    # of all three the last is the hand-over
    last = ["train", "task=aloha_handover", "device=cuda:1", *own[1:], "algo=distill"]
    assert argv("train_aloha.sh all 1 3 mine") == last
    for wrong in ("pick cpu 3", "lift cpu 3 mine"):
        assert "usage: scripts/train_aloha.sh handover|pick" in argv(f"train_aloha.sh {wrong}", 2)


def test_the_watched_teacher_is_of_the_pen_unless_another_task_is_named(argv):
    run = "outputs/pen_spin/mine"
    video = ["--video", f"{run}/videos/teacher.mp4", "--strip", f"{run}/videos/teacher.png"]
    assert argv("vis_teacher.sh mine") == ["play", run, *video]
    assert argv("vis_teacher.sh mine task.lag=0", DISPLAY=":0") == ["play", run, "task.lag=0"]
    run = "outputs/reach/mine"
    assert argv("vis_teacher.sh mine sim.nthread=1 task=reach", WAYLAND_DISPLAY="w") == [
        *("play", run, "sim.nthread=1")
    ]
    assert "usage: scripts/vis_teacher.sh NAME" in argv("vis_teacher.sh", 2)


def test_rlinfs_configurations_train_the_lift(argv):
    for config, algo in (("mujoco_ppo_mlp", "ppo"), ("mujoco_grpo_mlp", "grpo")):
        own = ["train", "task=panda_lift_cube", f"algo={algo}", f"name={config}"]
        assert argv(f"run_embodiment.sh {config}") == own
        assert argv(f"run_embodiment.sh {config} seed=3 num_envs=64") == [
            *(*own, "seed=3", "num_envs=64")
        ]
    for wrong in ("", " frankasim_sac_cnn_async"):
        assert "usage: scripts/run_embodiment.sh" in argv(f"run_embodiment.sh{wrong}", 2)


ALONE = ("setup_env", "install_ros")  # need nothing of ours
SCRIPTS = sorted(path.name for path in (ROOT / "scripts").glob("*.sh") if path.stem not in ALONE)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_never_takes_its_first_argument_for_an_extra_to_install(name):
    sources = re.findall(
        r"^source .*setup_env\.sh\"(.*)$", (ROOT / "scripts" / name).read_text(), re.M
    )
    assert sources in ([' ""'], [" dev"], [" plot"])


def test_a_fresh_clone_installs_the_core_and_hands_on_the_arguments(argv, tmp_path):
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "activate").write_text("")
    (venv / "python").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/installed\n')
    (venv / "python").chmod(0o755)
    fresh = {"PENSPIN_SKIP_INSTALL": "", "PENSPIN_VENV": str(tmp_path / "venv")}
    for _ in range(2):  # the second time there is nothing to do
        told = argv("train_teacher.sh cpu 0 mine task=reach", **fresh)
        assert told == ["train", "device=cpu", "seed=0", "name=mine", "task=reach"]
    installed = (tmp_path / "installed").read_text().splitlines()
    assert [line.split()[-1] for line in installed] == ["pip", "."]


@pytest.mark.parametrize(
    "line",
    [
        "train_teacher.sh cpu 0 mine algo.teacher=mine",
        "train_student_sim.sh algo.teacher=mine",
        "pretrain_encoder.sh data --out encoder",
        "finetune_ppo.sh --real-dataset-folder=episodes",
        "gen_grasp.sh cpu 0.28 --out grasps",
    ],
)
def test_a_path_given_to_a_script_is_from_the_folder_it_is_called_in(line, tmp_path):
    for name in ("bin", "elsewhere"):
        (tmp_path / name).mkdir()
    for name in ("penspin", "python"):
        stub = tmp_path / "bin" / name
        stub.write_text('#!/bin/sh\necho "$PWD" "$@"\n')
        stub.chmod(0o755)
    env = {"PENSPIN_SKIP_INSTALL": "1", "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", ROOT / "scripts" / line.split()[0], *line.split()[1:]],
        cwd=tmp_path / "elsewhere",
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    folder, *told = done.stdout.split()
    assert folder == str(tmp_path / "elsewhere")
    assert told[-1] == line.split()[-1]
    files = [pathlib.Path(word) for word in told if word.endswith(".py")]
    assert all(file.is_absolute() and file.exists() for file in files)
