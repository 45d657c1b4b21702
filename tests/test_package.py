"""The package as others install it: a wheel in its own environment, used from an empty folder."""

import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import urllib.request
import zipfile
from fractions import Fraction

import numpy as np
import pytest

from penspin_style.__main__ import main
from penspin_style.algo.imitation import DistillConfig
from penspin_style.cli import arguments
from penspin_style.config import PRETRAINED, weights_folder
from penspin_style.data.formats.video import VideoWriter
from penspin_style.train import compose
from tests.support.bad_meshes import BOX, stl

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE")
FOLDERS = ("penspin_style", "tasks", "real", "cfg", "outputs/pretrained")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
SMALL = (
    "num_envs=4 algo.horizon=4 total_samples=16 eval_every=0 final_episodes=2 video=false "
    "task.episode_length=12 loggers=[csv]"
)
USES = f"""
tasks
new task mine
new project ours
completion bash
twin
doctor
train task=pen_spin name=t {SMALL} algo.hidden=[16] algo.num_minibatches=1
train task=pen_spin_student name=s {SMALL} algo.epochs=1
train task=panda_lift_cube_vision name=v {SMALL}
train task=mine name=m {SMALL}
sweep space.yaml task=mine {SMALL} eval_every=1 eval_episodes=2 --trials 2
search task=pen_spin search.beams=2 search.plans=12 search.horizon=8 search.seconds=0.2
demos panda_pick_cube --count 1
runs
eval outputs/pen_spin/t --episodes 2
play outputs/panda_lift_cube_vision/v --video video.mp4 --episodes 1 --size 64
export outputs/pen_spin_student/s --samples 20 --out s.onnx
export outputs/panda_lift_cube_vision/v --samples 20 --out v.onnx
camera check cameras.yaml --policy v.onnx --seconds 0.2 --out seen.png
camera latency lamp.yaml lamp --light cv2:switch --blinks 1
record outputs/panda_lift_cube_vision/v rows --episodes 4 --num-envs 2
pretrain rows --out encoder --epochs 1
bench sim num_envs=4 --rounds 1 --steps 2
bench train num_envs=4 --rounds 1 --steps 2
bench render task=panda_lift_cube_vision num_envs=2 --rounds 1 --steps 2
bench overlap num_envs=4 --rounds 1 --steps 2
bench onnx s.onnx --calls 10
twin pen s.onnx --episodes 1
demo --list
teleop panda --device scripted --seconds 0.2 --out shown
replay make outputs/pen_spin/t made --robot pen --episodes 1 --num-envs 2 --best turns --share 0.5
replay run made --robot pen --out episodes --fast --seconds 0.5
rollout --robot pen --policy s.onnx --fast --seconds 0.5
data verify episodes
data info episodes
data pack episodes real.h5 --all
data unpack real.h5 unpacked
data repair real.h5 repaired
data convert episodes hdf5 --to robomimic
data convert episodes frames --to lerobot
compare outputs/pen_spin/t --metric train/actor/approx_kl
hub push s.onnx ./shared
hub pull ./shared --out fetched
robot check pen
real2sim check box.stl
real2sim repair box.stl --out repaired_scans
real2sim convert box.stl --mass 0.05 --out objects
real2sim scene objects
""".strip().splitlines()
LONGER = ["bench scale num_envs=4 --rounds 1 --steps 2"]
# what serves until a signal comes: the line, the key of its --json that is an address, exit code
SERVED = {
    "serve": ("serve s.onnx --port 0", "url", 0),
    "watch": ("watch outputs/pen_spin/t --port 0", "address", 128 + signal.SIGINT),
    "data view": ("data view episodes --port 8790", "address", 128 + signal.SIGINT),
}
FILES = {
    "space.yaml": "space: {algo.gamma: {low: 0.9, high: 0.99}}",
    "cameras.yaml": "front: {kind: file, device: grey.mp4}\nwrist: {kind: file, device: grey.mp4}",
    "lamp.yaml": "lamp: {kind: opencv}",
    # a lamp, and a camera that sees nothing else
    "cv2.py": """
import time
import numpy as np

CAP_PROP_BUFFERSIZE = 0
lit = False

def switch(on):
    global lit
    lit = on

class VideoCapture:
    def __init__(self, device): pass
    def isOpened(self): return True
    def set(self, key, value): return True
    def grab(self): return time.sleep(0.01) is None
    def retrieve(self): return True, np.full((8, 8, 3), 200 * lit, np.uint8)
    def release(self): pass
""",
}
PROGRAM = """
import json, shlex, sys, penspin_style, real, tasks
from penspin_style.__main__ import main
homes = [module.__file__ for module in (penspin_style, real, tasks)]
codes = {line: main(shlex.split(line)) for line in sys.stdin.read().splitlines()}
print(json.dumps({"homes": homes, "codes": codes}))
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The sources alone, with nothing that an earlier build left."""
    path = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, path / name)
    for name in FOLDERS:
        skip = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, path / name, symlinks=True, ignore=skip)
    return path


@pytest.fixture(scope="module")
def built(checkout):
    """The wheel, and what building it printed."""
    argv = ("wheel", "-v", "--no-deps", "--no-build-isolation", "--no-index", "-w", "dist", ".")
    done = subprocess.run([*PIP, *argv], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    return wheel, done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(built, tmp_path_factory):
    """An environment with the wheel, in somebody else's repository; other packages are ours."""
    home = tmp_path_factory.mktemp("home")
    identity = ("-c", "user.name=n", "-c", "user.email=e")
    for argv in (("init", "-q"), (*identity, "commit", "-q", "--allow-empty", "-m", "theirs")):
        subprocess.run(["git", *argv], cwd=home, check=True)
    venv = home / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    (packages,) = venv.glob("lib/python3*/site-packages")
    ours = {sysconfig.get_paths()[key] for key in ("purelib", "platlib")}
    (packages / "ours.pth").write_text("\n".join(sorted(ours)) + "\n")
    argv = ("--python", str(venv / "bin" / "python"), "install", "-q", "--no-deps", "--no-index")
    argv += ("--ignore-installed", str(built[0]))  # as the sources of an editable install seem
    done = subprocess.run([*PIP, *argv], cwd=home, env=alone(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return venv


@pytest.fixture(scope="module")
def used(environment):
    """An empty folder, but for what the verbs read, after every verb was used in it."""
    folder = environment.parent / "empty"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    writer = VideoWriter(folder / "grey.mp4", 64, 64, Fraction(20))
    writer.add([np.full((64, 64, 3), grey, np.uint8) for grey in range(0, 200, 20)])
    writer.close()
    (folder / "box.stl").write_bytes(stl(BOX.triangles))
    lines = [line for line in USES if has_opengl() or not line.startswith("play")]
    return folder, *use(environment, folder, lines)


def use(environment, folder, lines):
    """Use verbs in one process of the environment; return what it printed."""
    done = subprocess.run(
        [environment / "bin" / "python", "-c", PROGRAM],
        input="\n".join(lines),
        cwd=folder,
        env=alone(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout, done.stderr


@contextlib.contextmanager
def serving(environment, folder, line, key):
    """Let the installed command serve; give its process and the address that it says."""
    argv = [environment / "bin" / "penspin", *shlex.split(line), "--json"]
    with subprocess.Popen(
        argv, cwd=folder, env=alone(), stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            said = server.stdout.readline()
            while said and not said.endswith("}\n"):
                said += server.stdout.readline() or pytest.fail(said)
            yield server, json.loads(said)[key]
        finally:
            server.terminate()


def verbs(parser, path=()):
    """Return the words of each verb that has none below it."""
    below = parser.verbs()
    found = [verbs(sub, (*path, name)) for name, sub in below.items()]
    return {words for several in found for words in several} if below else {" ".join(path)}


def verb_of(line, parser):
    """Return the words of a line that are its verb's."""
    path = []
    for word in line.split():
        if word not in parser.verbs():
            break
        path.append(word)
        parser = parser.verbs()[word]
    return " ".join(path)


def alone():
    """The environment of a process that must not find our sources."""
    outside = ("PYTHONPATH", "PYTHONSAFEPATH")
    return {k: v for k, v in os.environ.items() if k not in outside} | {"OMP_NUM_THREADS": "1"}


def has_opengl():
    from penspin_style.render.gl_renderer import NoOpenGLError, choose_platform

    try:
        choose_platform()
    except NoOpenGLError:
        return False
    return True


# What is built.


def test_neither_a_wheel_nor_an_editable_install_prints_a_warning(built, checkout, tmp_path):
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=checkout, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for said in (built[1], done.stdout + done.stderr):
        assert re.findall(r".*Warning:.*|.*\bDeprecat.*|.*absent from.*", said) == []
        assert "Editable installation." not in said  # and so it begins in a notice


def test_a_wheel_holds_every_file_that_is_read_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert {name.partition("/")[0] for name in names} == {"penspin_style", "tasks", "real"}
    wanted = {f"penspin_style/{f.relative_to(ROOT)}" for f in (ROOT / "cfg").rglob("*.yaml")}
    for folder in ("penspin_style", "tasks", "real"):
        wanted |= {str(f.relative_to(ROOT)) for f in (ROOT / folder).rglob("*.py")}
    data = [f for f in (ROOT / "tasks").rglob("*") if f.is_file() and "__pycache__" not in f.parts]
    wanted |= {str(f.relative_to(ROOT)) for f in data}
    library = ROOT / "penspin_style"
    data = [*library.glob("templates/*"), *library.glob("viewer/*.html"), library / "py.typed"]
    wanted |= {str(f.relative_to(ROOT)) for f in data} | {"real/py.typed"}
    assert wanted <= names
    weights = {name for name in names - wanted if not name.startswith("penspin_style/pretrained/")}
    assert weights == set()


# From an empty folder.


def test_every_verb_of_a_wheel_works_in_an_empty_folder(used, environment):
    folder, said, complaints = used
    found = json.loads(said.splitlines()[-1])
    assert all(pathlib.Path(home).is_relative_to(environment) for home in found["homes"])
    assert [line for line, code in found["codes"].items() if code != 0] == [], complaints[-4000:]
    assert len(found["codes"]) >= len(USES) - 1
    assert "panda_shifted" in said  # of the list of twins
    assert (folder / "outputs" / "pen_spin_student" / "s" / "policy" / "card.json").exists()


def test_a_run_does_not_take_the_repository_around_the_environment_for_ours(used):
    folder = used[0] / "outputs" / "pen_spin" / "t"
    assert "is not a git checkout" in (folder / "git.txt").read_text()
    assert "is not a git checkout" in (folder / "git.diff").read_text()


def test_the_installed_command_serves_a_policy_to_a_twin(used, environment):
    folder, penspin = used[0], environment / "bin" / "penspin"
    line, key, _ = SERVED["serve"]
    with serving(environment, folder, line, key) as (_, url):
        argv = ["rollout", "--robot", "pen", "--server", url, "--fast", "--seconds", "0.5"]
        done = subprocess.run(
            [penspin, *argv, "--json"], cwd=folder, env=alone(), capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["robot"] == "pen"


@pytest.mark.parametrize("verb", SERVED)
def test_what_serves_answers_until_it_is_interrupted(used, environment, verb):
    line, key, code = SERVED[verb]
    with serving(environment, used[0], line, key) as (server, address):
        page = address.replace("ws://", "http://") + ("/healthz" if verb == "serve" else "")
        with urllib.request.urlopen(page, timeout=20) as answer:
            assert answer.status == 200 and (verb == "serve" or b"<html" in answer.read().lower())
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == code


@pytest.mark.slow
@pytest.mark.parametrize("line", LONGER)
def test_a_verb_that_takes_longer_works_in_an_empty_folder(used, environment, line):
    said, complaints = use(environment, used[0], [line])
    assert json.loads(said.splitlines()[-1])["codes"] == {line: 0}, complaints[-4000:]


def test_no_verb_of_the_command_line_is_left_out_here():
    parser = arguments.parser()
    lines = [*USES, *LONGER, *(line for line, _, _ in SERVED.values())]
    assert {verb_of(line, parser) for line in lines} == verbs(parser)
    assert [verb_of(line, parser) for line, _, _ in SERVED.values()] == [*SERVED]


# Default paths.


def test_default_weights_are_the_packages_and_given_paths_the_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (DistillConfig().teacher, DistillConfig().encoder, "pretrained:pen_spin/teacher"):
        assert weights_folder(path) == PRETRAINED / path.removeprefix("pretrained:")
        assert (weights_folder(path)).is_dir()
    given = weights_folder("outputs/pretrained/nature_cnn_cifar10")
    assert given.resolve() == tmp_path / "outputs" / "pretrained" / "nature_cnn_cifar10"


@pytest.mark.parametrize("name", ["", "nowhere", "../cfg", "/tmp", "pen_spin/../../cfg"])
def test_what_did_not_come_with_the_package_is_said_to_be_in_the_repository(name):
    with pytest.raises(ValueError, match="the repository holds all that is trained"):
        weights_folder(f"pretrained:{name}")


def test_a_default_can_be_given_on_the_command_line_and_is_saved_as_it_was_given():
    argv = ["task=pen_spin_student", "algo.teacher=pretrained:panda_lift_cube"]
    cfg, _, text = compose.compose_train(argv)
    assert cfg.algo.teacher == "pretrained:panda_lift_cube"
    assert "teacher: pretrained:panda_lift_cube" in text


@pytest.mark.parametrize(
    "line", ["train --print-config", "twin", "twin nobody policy.onnx", "train task=pen_spin"]
)
def test_an_installation_that_is_not_whole_says_so(line, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compose, "FOLDER", tmp_path / "cfg")
    assert main(line.split()) == 2
    wanted = f"penspin: {tmp_path / 'cfg'} is missing: this installation is not whole"
    assert capsys.readouterr().err.startswith(wanted)
