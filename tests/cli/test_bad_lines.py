"""More command lines that are invalid, of every kind: one clear line each, exit code 2."""

import argparse
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from penspin_style.__main__ import main
from penspin_style.cli import arguments
from penspin_style.cli.bench import table
from penspin_style.train.keys import nearest
from tests.support.terminal import call, check_refusal

ROOT = pathlib.Path(__file__).parents[2]
# command line -> what the one line on stderr says
LINES = {
    # verbs that look like one
    "evl run": "invalid choice: 'evl'; did you mean 'eval'?",
    "exprt run": "did you mean 'export'?",
    "Train": "did you mean 'train'?",
    "benchmark sim": "did you mean 'bench'?",
    "bench trian": "invalid choice: 'trian'; did you mean 'train'?",
    "data verfy x.h5": "did you mean 'verify'?",
    "data": "the following arguments are required: WHAT",
    "replay mak x y": "did you mean 'make'?",
    "new": "the following arguments are required: WHAT",
    "new tsk balance": "did you mean 'task'?",
    "new task": "the following arguments are required: NAME",
    "completion": "the following arguments are required: shell",
    "completion csh": "invalid choice: 'csh'; did you mean 'zsh'?",
    "123": "invalid choice: '123' (choose from 'tasks'",
    # options that look like one, or want a value
    "eval run --epsiodes 3": "unrecognized arguments: --epsiodes 3; did you mean --episodes?",
    "eval run --episodes=0": "--episodes: '0' is not a whole number",
    "eval run --seed": "--seed: expected one argument",
    "eval run --episodes task.randomize=false": "--episodes: 'task.randomize=false' is not a whole",
    "train --print-confg": "did you mean --print-config?",
    "train --jsn": "did you mean --json?",
    "play run --vidoe x.mp4": "did you mean --video?",
    "export run --tolerence 1e-5": "did you mean --tolerance?",
    "export run --out": "--out: expected one argument",
    "record run rows --num_envs 3": "did you mean --num-envs?",
    "serve p.onnx --port 70000": "--port: '70000' is not a whole number of 0 to 65535",
    "serve": "the following arguments are required: POLICY.onnx",
    "tasks --verbose": "unrecognized arguments: --verbose",
    "tasks task=pen_spin": "unrecognized arguments: task=pen_spin",
    "doctor now": "'now' is not an override; write KEY=VALUE",
    # keys at any depth
    "train algo.lr=1e-3": "unknown key 'algo.lr'; did you mean algo.learning_rate?",
    "train lr=1e-3": "did you mean algo.learning_rate?",
    "train gamma=0.9": "did you mean algo.gamma?",
    "train learning_rate=1e-3": "did you mean algo.learning_rate?",
    "train lift=2": "did you mean task.reward.lift?",
    "train episode_length=20": "did you mean task.episode_length?",
    "train nthread=2": "did you mean sim.nthread?",
    "train sim.nthreads=2": "did you mean sim.nthread?",
    "train algo.horizn=2": "did you mean algo.horizon?",
    "train algo.starts.fr=0.1": "did you mean algo.starts.far?",
    "train total_sample=1000": "did you mean total_samples?",
    "train task.reward.lift.weight=2": "unknown key 'task.reward.lift.weight'",
    "num_envs=0 train": "num_envs must be >= 1, got 0",
    "seed=-1 train num_envs=4": "seed must be >= 0, got -1",
    "task=panda_lift_cub train": "did you mean panda_lift_cube?",
    "train task=plc": "did you mean panda_lift_cube?",
    # values and files
    "train algo.gamma": "'algo.gamma' is not an override; write KEY=VALUE",
    "train algo.encoders=3": "algo.encoders",
    "train curriculum=3": "curriculum",
    "train out=": "out must be a folder, as . for the current one, got ''",
    "eval task=panda_lift_cube": "the following arguments are required: policy",
    "eval task.x=1 nofile": "nofile does not exist",
    "new task 3d": "'3d' is no name of a Python module",
    "new project torch": "there is a Python module torch already",
}


@pytest.mark.parametrize("line", LINES)
def test_an_invalid_line_is_one_line_that_says_what_is_meant(line, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    code = call(line)
    check_refusal(code, *capfd.readouterr(), 2, LINES[line])
    assert list(tmp_path.iterdir()) == []


ONNX = ROOT / "outputs" / "pretrained" / "panda_lift_cube" / "policy.onnx"
RANGE = "{low: 0.9, high: 0.99}"
FILES = {
    "file.txt": "text",
    "bad.onnx": "not a network",
    "camera.yaml": "front: {kind: file, device: none.mp4}",
    "kind.yaml": "front: {kind: webcam}",
    "key.yaml": "front: {kind: file, devise: none.mp4}",
    "view.yaml": "front: {kind: file, device: none.mp4, view: 200}",
    "list.yaml": "[a, b]",
    "sweep.yaml": f"space: {{algo.gamma: {RANGE}}}",
    "number.yaml": f"overrides: [3]\nspace: {{algo.gamma: {RANGE}}}",
    "varied.yaml": f"overrides: [algo.gamma=0.95]\nspace: {{algo.gamma: {RANGE}}}",
    "log.yaml": "space: {algo.gamma: {low: 0, high: 0.5, log: true}}",
    "name.yaml": "space: {name: {choices: [a, b]}}",
}
# command line beside these files -> what the one line on stderr says
BESIDE_FILES = {
    # the Hub
    "hub puhs bad.onnx ./there": "did you mean 'push'?",
    "hub push bad.onnx ./there": "bad.onnx is not sent: policy.onnx: is not an ONNX file",
    "hub push '' ./there": "argument what: must not be empty, got ''",
    "hub push bad.onnx there": "'there' is no repository: give ORG/NAME, or a local folder as",
    "hub push bad.onnx ./there --licence 'a b'": "'a b' is no identifier of the Hub, as apache-2.0",
    "hub push file.txt ./there": "file.txt holds neither a policy nor episodes",
    "hub pull ./nothing": "./nothing is no folder",
    "hub pull . --dataset": ". holds no dataset that can be trusted: there is no .h5 file",
    "hub pull . --out ''": "argument --out: must not be empty, got ''",
    # cameras
    "camera chek camera.yaml": "invalid choice: 'chek'; did you mean 'check'?",
    "camera check camera.yaml --policy bad.onnx": "bad.onnx: is not an ONNX file",
    "camera latency kind.yaml front": "front: kind 'webcam' must be one of opencv, realsense, file",
    "camera latency key.yaml front": "there is no key 'devise'; did you mean 'device'?",
    "camera latency view.yaml front": "view must be above 0 and up to 179, got 200",
    "camera latency camera.yaml frnt": "has no camera 'frnt'; did you mean 'front'?",
    "camera latency camera.yaml front --light lamp": "--light must be module:function, got 'lamp'",
    "camera latency camera.yaml front --light os:sep": "--light os:sep: os has no function 'sep'",
    f"rollout --robot panda --policy {ONNX} --cameras list.yaml": "must be a mapping, it is list",
    f"rollout --robot panda --policy {ONNX} --cameras camera.yaml": "sees no camera 'front'; its",
    # what is empty, as of a shell's variable that is not set
    "rollout --robot panda --policy ''": "argument --policy: must not be empty, got ''",
    "rollout --robot '' --policy bad.onnx": "argument --robot: must not be empty, got ''",
    f"rollout --robot panda --policy {ONNX} --cameras ''": "argument --cameras: must not be empty",
    "eval ''": "argument policy: must not be empty, got ''",
    "play --video '' --agent zero": "argument --video: must not be empty, got ''",
    "data verify ''": "must not be empty, got ''",
    "twin panda ''": "argument POLICY.onnx: must not be empty, got ''",
    # robots
    "teleop panda --device scripted --ask": "--ask needs a terminal to answer on",
    "teleop pen --device scripted": "pen_spin_student has no scripted expert",
    "teleop allegro_ros --device scripted": "--device scripted moves twins alone",
    "rollout --robot panda --server ws://127.0.0.1:99999": "is not the url of a policy server",
    "rollout --robot panda --server ws://127.0.0.1:1 --api-key-file no": "--api-key-file no is not",
    "teleop panda --device scripted --speed 1.5": "--speed: '1.5' is not a share above 0",
    "teleop panda --device keyboard --fast": "a twin that is moved by keyboard runs in real time",
    "teleop pnda --device scripted": "there is no robot 'pnda'",
    "teleop list.yaml --device scripted": "list.yaml is not readable: it must be a mapping",
    # runs and pages
    "sweep list.yaml": "list.yaml is not readable: it must be a mapping, it is list",
    "sweep number.yaml": "number.yaml: overrides must be a list of KEY=VALUE, got [3]",
    "sweep varied.yaml": "algo.gamma=0.95: the sweep varies algo.gamma already",
    "sweep log.yaml": "space.algo.gamma must be above 0 with log: true",
    "sweep name.yaml": "name: a sweep says itself what its runs are called",
    "sweep sweep.yaml --out file.txt": "--out file.txt: cannot write there",
    "compare nowhere": "nowhere is no run folder and holds none",
    "watch . --port 70000": "--port: '70000' is not a whole number of 0 to 65535",
    "watch .": "is no run folder: it has no config.yaml and checkpoints",
    "runs file.txt": "file.txt is no folder; give one that holds runs",
    "data view .": ". holds no .h5 files",
    "demo ''": "argument NAME: must not be empty, got ''",
    "new task _": "'_' is no name of a Python module",
    "new task mine --out file.txt": "--out file.txt: file.txt is no folder",
    # keys
    "train launcher=slurm": "launcher must be local or ray, got slurm",
    "train cluster.env=2": "launcher must be ray for cluster.env, got local",
    "train launcher=ray cluster.component_placement.env=3-1": "must be processes as 0-7, or empty",
    "train launcher=ray cluster.address=127.0.0.1:1": "127.0.0.1:1: nothing answers there",
    "train launcher=ray overlap=true": "say rollout.pipeline_stage_num=2 instead",
    "train overlap=true algo=sac": "algo=sac collects and learns in turns",
    "train video_every=-1": "video_every must be >= 0, got -1",
    "train video_tiles=0": "video_tiles must be >= 1, got 0",
    "train resume_changes=[algo.gamma]": "resume_changes must be [] without resume=true",
    "train algo=diffusion algo.num_queries=0": "algo.num_queries must be at least 1, got 0",
    "train algo=diffusion algo.steps=200": "algo.steps must be at most 100, got 200",
    "train algo=sac algo.starts.before_fall=[3]": "must be [fewest, most] control steps, got [3]",
    "train algo=td3": "algo=td3: there is no such algorithm; there are act, clone, ddpg",
    "train algo=grpo algo.group_size=1": "algo.group_size must be at least 2",
    "train task=playground:X": "playground",
}


@pytest.fixture(scope="module")
def beside_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("line", BESIDE_FILES)
def test_an_invalid_line_beside_files_says_what_is_meant(line, beside_files, monkeypatch, capfd):
    monkeypatch.chdir(beside_files)
    code = call(line)
    check_refusal(code, *capfd.readouterr(), 2, BESIDE_FILES[line])
    assert {f.name: f.read_text() for f in beside_files.iterdir()} == FILES


def leaves(parser, path=()):
    """Yield (verbs, parser) of every verb without further ones."""
    verbs = parser.verbs()
    if not verbs:
        yield " ".join(path), parser
    for name, sub in verbs.items():
        yield from leaves(sub, (*path, name))


@pytest.mark.parametrize(("verb", "parser"), list(leaves(arguments.parser())))
def test_every_argument_says_what_it_is_and_every_option_its_default(verb, parser):
    shown = " ".join(parser.format_help().split())
    for action in parser._actions:
        assert action.help, f"{verb} {action.option_strings or action.dest}"
        is_set = action.default not in (None, False, "", argparse.SUPPRESS, [])
        if action.option_strings and is_set:
            alone = parser._get_formatter()
            alone.add_argument(action)
            assert "default" in alone.format_help(), f"{verb} {action.option_strings}"
    assert shown.startswith(f"usage: penspin {verb}")


def test_overrides_may_stand_before_the_verb_and_before_the_policy():
    for line in (
        "task.randomize=false eval run --episodes 3 --blank front_rgb",
        "eval task.randomize=false run --episodes 3 --blank front_rgb",
        "eval run --blank front_rgb --episodes 3 task.randomize=false",
    ):
        args = arguments.parse(line.split())
        assert (args.policy, args.overrides) == ("run", ["task.randomize=false"])
        assert (args.episodes, args.blank) == (3, ["front_rgb"])
    args = arguments.parse(["record", "--seed", "3", "a=1", "run", "b=2", "rows", "c=3"])
    assert (args.policy, args.out, args.overrides) == ("run", "rows", ["a=1", "b=2", "c=3"])
    args = arguments.parse(["eval", "./a=b.onnx", "--plot", "c=d.png"])
    assert (args.policy, args.plot, args.overrides) == ("./a=b.onnx", "c=d.png", [])


def test_the_nearest_name_is_found_by_spelling_by_its_last_part_and_by_its_initials():
    names = ["algo.learning_rate", "algo.gamma", "task.reward.lift", "num_envs"]
    for word, meant in (
        ("algo.lr", "algo.learning_rate"),
        ("algo.lerning_rate", "algo.learning_rate"),
        ("lift", "task.reward.lift"),
        ("task.lift", "task.reward.lift"),
        ("num_env", "num_envs"),
        ("ne", "num_envs"),
    ):
        assert nearest(word, names) == f"; did you mean {meant}?"
    assert nearest("zzz", names) == f"; there are {', '.join(sorted(names))}"


def test_a_measured_speed_is_a_table_for_people():
    lines = table({"ratio": {"median": 0.91234, "rounds": 7}, "unit": "steps/s"})
    assert lines == ["ratio.median   0.9123", "ratio.rounds        7", "unit          steps/s"]


def bash(script, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=300, **kwargs
    )
    return done.stdout, done.stderr


def test_a_reader_that_leaves_early_is_no_message(tmp_path):
    read, write = os.pipe()
    os.close(read)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for argv in ("completion bash", "--help"):
        command = [sys.executable, "-m", "penspin_style", *argv.split()]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, stdout=write, stderr=subprocess.PIPE, timeout=300
        )
        assert done.stderr == b"" and done.returncode in (0, 128 + signal.SIGPIPE)
    os.close(write)


def test_a_print_into_a_lost_output_is_no_message(monkeypatch, capfd):
    def broken(args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("penspin_style.cli.tasks.run", broken)
    monkeypatch.setattr("penspin_style.system.interrupt.silence_lost", lambda: True)
    assert main(["tasks"]) == 128 + signal.SIGPIPE
    assert capfd.readouterr() == ("", "")


def test_a_pipe_that_is_not_the_output_still_says_that_it_broke(monkeypatch, capfd):
    def broken(args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("penspin_style.cli.tasks.run", broken)
    assert main(["tasks"]) == 2
    assert "Broken pipe" in capfd.readouterr().err


def test_bash_completes_verbs_options_tasks_and_keys(monkeypatch):
    printed = io.StringIO()
    monkeypatch.setattr("sys.stdout", printed)
    assert main(["completion", "bash"]) == 0
    ask = """
    ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _penspin; echo "${COMPREPLY[*]}"; }
    ask penspin tr
    ask penspin train task=pen_sp
    ask penspin train task=pen_spin --pr
    ask penspin bench re
    ask penspin eval run --epi
    """
    out, err = bash(f"{printed.getvalue()}\n{ask}")
    assert out.splitlines() == [
        *("train", "task=pen_spin task=pen_spin_student", "--print-config", "render", "--episodes"),
    ]
    assert err == ""


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_get_the_same_words(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    for word in ("--print-config", "task=pen_spin", "rollout", "verify"):
        assert word in out


def test_the_configuration_is_one_json_object(capsys):
    assert main(["num_envs=3", "train", "--print-config", "--json", "algo.gamma=0.5"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["num_envs"], printed["algo"]["gamma"]) == (3, 0.5)
