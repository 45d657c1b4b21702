"""The command line: what it refuses and how it says so, what it prints, how fast it answers."""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys

import pytest

import tasks
from penspin_style.system.plain_yaml import parse_mapping
from penspin_style.train.compose import compose_train
from penspin_style.train.run import Run
from tests.support.terminal import call, check_refusal
from tests.support.work import at_most, computed

ROOT = pathlib.Path(__file__).parents[2]
SMALL = "num_envs=2 algo.horizon=4 total_samples=8 eval_every=0 final_episodes=2 video=false"
STUDENT = ROOT / "outputs" / "pretrained" / "panda_lift_cube_vision"
BENCHES = tuple(f"bench {kind}" for kind in ("sim", "train", "render", "overlap", "scale", "onnx"))
VERBS = [
    "tasks",
    "train",
    "eval",
    "play",
    "export",
    "record",
    "search",
    "sweep",
    "pretrain",
    "bench",
    "doctor",
]
TASKS = f"there are {', '.join(tasks.task_names())}"
TERM = "task.observation.teacher.box_pos"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a finished run `run`, and things that look like runs and are not."""
    path = tmp_path_factory.mktemp("cli")
    argv = [*SMALL.split(), "loggers=[csv]", f"out={path}"]
    assert Run(*compose_train(["task=panda_lift_cube", *argv])).fit(quiet=True) == 0
    run = path / "run"
    (path / "panda_lift_cube" / "run").rename(run)
    for name in ("flipped", "no_task", "no_yaml", "unfinished", "wrecked"):
        shutil.copytree(run, path / name)
    with (path / "flipped" / "policy" / "policy.safetensors").open("ab") as file:
        file.write(b"x")
    (path / "no_task" / "config.yaml").write_text("num_envs: 3\n")
    (path / "no_yaml" / "config.yaml").write_text("a: [\n")
    for name in ("unfinished", "wrecked", "no_task", "no_yaml"):
        shutil.rmtree(path / name / "policy")
    for values in (path / "wrecked" / "checkpoints").glob("*/state.json"):
        values.unlink()
    (path / "empty").mkdir()
    (path / "text.onnx").write_text("not a network")
    (path / "cut.onnx").write_bytes(bytes(100))
    (path / "file.txt").write_text("text")
    return path


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    yield folder
    assert sorted(folder.rglob("*")) == before, "a refused command left something behind"


# command line -> what the one line on stderr names
REFUSED = {
    # verbs and flags
    "": "VERB",
    "trian": "'train'",
    "fly": "invalid choice: 'fly' (choose from 'tasks'",
    "tasks extra": "extra",
    "train --nope": "--nope",
    "train --episodes 3": "--episodes",
    "bench": "WHAT",
    "bench speed": "'sim', 'train'",
    "bench sim --rounds 0": "--rounds: '0' is not a whole number of at least 1",
    "bench train --steps many": "--steps: 'many'",
    "doctor --fitt": "--fitt",
    # tasks
    "train task=panda_lift_cub": "did you mean panda_lift_cube?",
    "train task=nothing_like_it": TASKS,
    "train task=": TASKS,
    "train task=null": TASKS,
    "train task=..": TASKS,
    "train task=os.path": "os.path binds no Task subclass to TASK",
    "train task=no.such.module": "no module no.such.module",
    "train task=panda_lift_cube task=panda_pick_cube": "the task is panda_lift_cube already",
    # keys
    "train num_env=16": "unknown key 'num_env'; did you mean num_envs?",
    "train algo.gama=0.9": "did you mean algo.gamma?",
    "train task.reward.lft=2": "did you mean task.reward.lift?",
    f"train {TERM}s.noise=1": f"did you mean {TERM}.noise?",
    "train zzz=1": "unknown key 'zzz'; penspin train --print-config shows all",
    "train algo=nonsense": "no such algorithm; there are act, clone, ddpg, diffusion, distill, "
    "grpo, ppo, sac",
    "train task.observation=3": "task.observation is a group",
    "train 'task.reward={lift: 1}'": "task.reward is a group",
    "train hydra.run.dir=x": "unknown key 'hydra.run.dir'",
    # named changes
    "train task=pen_spin ablation=no_tactil": "ablation=no_tactil: there is no such ablation; did",
    "train task=pen_spin ablation=": "ablation=: there is no such ablation; there are no_point_cl",
    "train task=pen_spin ablation=null": "ablation=None: there is no such ablation",
    "train task=pen_spin 'ablation=[no_tactile]'": "did you mean no_tactile?",
    "train task=pen_spin ablation=no_tactile ablation=no_z_reward": "the ablation is no_tactile",
    "train task=pen_spin ablatio=no_tactile": "unknown key 'ablatio'; did you mean ablation?",
    "train task=pen_spin ablation.no_tactile=true": "unknown key 'ablation.no_tactile'",
    "train ablation=no_z_reward": "ablation=no_z_reward sets task.reward.z_spread, which "
    "task=panda_lift_cube does not have; it is for task=pen_spin or task=pen_spin_student",
    "train task=pen_grasp ablation=no_tactile": "task.tactile=false changes nothing, for",
    "train task=pen_spin student=proprio": "does not have; it is for task=pen_spin_student",
    "train task=pen_spin_student student=dagger": "did you mean dagger_proprio?",
    "train task=pen_spin_student student=dagger_proprio algo=ppo": "it is for "
    "task=pen_spin_student algo=distill",
    # syntax
    "train num_envs": "'num_envs' is not an override; write KEY=VALUE",
    "train num_envs==5": "'num_envs==5' is not an override",
    "train 'name=run(2'": "write KEY=VALUE; a text of such characters is quoted: \"name='run(2'\"",
    "train --json num_envs": "'num_envs' is not an override",
    "export run --samples 100 num_envs=3": "unrecognized arguments: num_envs=3",
    "eval run --episodes 1 more": "unrecognized arguments: more",
    "eval run --episodes 1 task.reward.lft=2": "did you mean task.reward.lift?",
    "train 'num_envs={a'": "'num_envs={a' is not an override",
    "train 'num_envs=16 seed=1'": "'num_envs=16 seed=1' is not an override",
    "train =5": "unknown key ''",
    "train +num_envs=5": "'+num_envs=5': keys can be set, not added",
    "train ++new=5": "'++new=5'",
    "train ~num_envs": "'~num_envs'",
    "train num_envs=1,2": "'num_envs=1,2': one value per run",
    "train 'num_envs=range(1,5)'": "'num_envs=range(1,5)': one value per run",
    "train 'num_envs=${seed_}'": "num_envs: Interpolation key 'seed_' not found",
    # types
    "train num_envs=many": "num_envs: Value 'many' of type 'str' could not be converted to Integer",
    "train num_envs=1.5": "num_envs: Value '1.5'",
    "train num_envs=": "num_envs: Value ''",
    "train num_envs=true": "num_envs: Value 'True'",
    "train num_envs=null": "num_envs: the value must not be null",
    "train num_envs=[1,2]": "num_envs: Value '[1, 2]'",
    "train seed=abc": "seed: Value 'abc'",
    "train task.reward.lift=much": "task.reward.lift: Value 'much'",
    "train task.episode_length=1.5": "task.episode_length: Value '1.5'",
    "train algo.hidden=128": "algo.hidden: a list is written [a,b]",
    "train algo.hidden=[a]": "algo.hidden[0]: Value 'a'",
    "train algo.compile=maybe": "algo.compile: Value 'maybe' is not a valid bool",
    "train sim.nconmax=lots": "sim.nconmax: Value 'lots'",
    "train loggers=csv": "loggers: a list is written [a,b]",
    f"train {TERM}.delay=2": f"{TERM}.delay: a list is written [a,b]",
    "train total_samples=nan": "total_samples: Value 'nan'",
    "train resume=maybe": "resume: Value 'maybe'",
    "train name=null": "name: the value must not be null",
    # ranges
    "train num_envs=0": "num_envs must be >= 1, got 0",
    "train num_envs=-4": "num_envs must be >= 1, got -4",
    "train num_envs=9000000000": "num_envs must be below 2**31",
    "train seed=-1": "seed must be >= 0, got -1",
    "train seed=99999999999999999999": "seed must be below 2**63",
    "train eval_seed=-1": "eval_seed must be >= 0",
    "train eval_every=-1": "eval_every must be >= 0",
    "train eval_episodes=0": "eval_episodes must be >= 1",
    "train final_episodes=0": "final_episodes must be >= 1",
    "train total_samples=0": "total_samples must be >= 1",
    "train checkpoint_every=0": "checkpoint_every must be >= 1",
    "train keep_last=0": "keep_last must be >= 1",
    "train stop_at_success=2": "stop_at_success must be in (0, 1] or null, got 2.0",
    "train algo.gamma=1.5": "algo.gamma must be in [0, 1], got 1.5",
    "train algo.learning_rate=0": "algo.learning_rate must be finite and > 0, got 0",
    "train algo.init_std=-1": "algo.init_std must be finite and > 0",
    "train algo.entropy_coef=-1": "algo.entropy_coef must be finite and >= 0",
    "train algo.target_kl=0": "algo.target_kl must be > 0 or null",
    "train algo.horizon=0": "algo.horizon must be >= 1",
    "train algo.num_minibatches=0": "algo.num_minibatches must be >= 1",
    "train algo.hidden=[0]": "algo.hidden must be a list of sizes >= 1",
    "train sim.nthread=-1": "sim.nthread must be >= 0",
    "train sim.njmax=0": "sim.njmax must be > 0 or null",
    "train task.control_dt=-0.05": "task.control_dt must be positive, got -0.05",
    "train task.episode_length=0": "task.episode_length must be at least 1",
    f"train {TERM}.noise=-1": f"{TERM}.noise must be >= 0",
    f"train {TERM}.delay=[2,0]": f"{TERM}.delay must be 0 <= fewest <= most",
    f"train {TERM}.delay=[0,1,2]": f"{TERM}.delay must be [fewest, most]",
    f"train {TERM}.history=0": f"{TERM}.history must be at least 1",
    # not a number
    "train algo.gamma=nan": "algo.gamma must be",
    "train algo.learning_rate=inf": "algo.learning_rate must be finite",
    "train stop_at_success=nan": "stop_at_success must be",
    "train task.reward.lift=nan": "task.reward.lift must be finite, got nan",
    "train task.reward.lift=-inf": "task.reward.lift must be finite, got -inf",
    "train task.control_dt=inf": "task.control_dt must be finite, got inf",
    f"train {TERM}.noise=nan": f"{TERM}.noise must be finite, got nan",
    # choices
    "train algo.activation=gelu": "algo.activation must be elu, relu, silu, tanh, got gelu",
    "train algo.name=sac": "algo.name must be ppo, got sac",
    "train sim.engine=bullet": "sim.engine must be auto, mujoco, warp or mjx, got bullet",
    "train loggers=[csv,excel]": "loggers must be among tensorboard, csv",
    "train device=tpu": "device must be auto, cpu, cuda or cuda:N, got tpu",
    "train device=cuda:x": "device must be auto, cpu, cuda or cuda:N, got cuda:x",
    # contradictions
    "train task.control_dt=0.0333": "task.control_dt 0.0333 s must be a multiple of the timestep",
    "train resume=true": "resume=true, but outputs/panda_lift_cube holds no run; leave resume out",
    "train resume=true name=run": "outputs/panda_lift_cube/run holds no checkpoint",
    "eval run task=panda_pick_cube": "the task is panda_lift_cube already",
    f"eval run {TERM}.history=2 --episodes 1": "the policy reads 'teacher', 22 numbers",
    "eval unfinished algo.hidden=[3] --episodes 1": "algo.hidden=[3]: the checkpoints of",
    "play run --strip x.png": "--strip x.png: it is cut from a video; add --video",
    # files
    "train name=a/b": "name must be a folder name, got 'a/b'",
    "train name=..": "name must be a folder name, got '..'",
    "train name=": "name must be a folder name, got ''",
    f"train {SMALL} out=file.txt": "out=file.txt: cannot write there",
    f"train {SMALL} out=/proc/nowhere": "out=/proc/nowhere: cannot write there",
    "eval": "policy",
    "eval nofile": "nofile does not exist; give a run folder, a policy folder or an .onnx file",
    "eval nofile.onnx": "nofile.onnx does not exist",
    "eval empty": "empty is neither a run folder, a policy folder nor an .onnx file",
    "eval file.txt": "file.txt is neither",
    "eval text.onnx": "text.onnx",
    "eval cut.onnx": "cut.onnx",
    "eval no_task": "no_task/config.yaml names no task",
    "eval no_yaml": "no_yaml/config.yaml is not readable as a run's configuration",
    "eval run --episodes 0": "--episodes: '0' is not a whole number of at least 1",
    "eval run --episodes -3": "--episodes: '-3'",
    "eval run --episodes 1.5": "--episodes: '1.5'",
    "eval run --episodes ²": "--episodes: '²'",
    "eval run --seed -1": "--seed: '-1' is not a whole number of 0 to 2**63 - 1",
    "eval run --seed 99999999999999999999": "--seed: '99999999999999999999'",
    "play run --video x.avi": "--video x.avi: the file must end in .mp4",
    "play run --video nofolder/x.mp4": "--video nofolder/x.mp4: the folder nofolder does not exist",
    "play run --video x.mp4 --strip x.jpg": "--strip x.jpg: the file must end in .png",
    "play run --video x.mp4 --strip nofolder/x.png": "the folder nofolder does not exist",
    "play run --video x.mp4 --size 3": "--size 3: the video format needs an even number",
    "play run --video x.mp4 --size 1000000": "size 1000000: the task's model allows at most",
    "export nofile": "nofile holds no policy",
    "export empty": "empty holds no policy",
    "export run --out x.txt": "--out x.txt: the file must end in .onnx",
    "export run --samples 0": "--samples: '0'",
    "export run --tolerance 0": "--tolerance: '0' is not a number above 0 and up to 0.01",
    "export run --tolerance -1e-5": "--tolerance",
    "export run --tolerance 1": "--tolerance: '1' is not",
    "export run --tolerance nan": "--tolerance: 'nan' is not",
    "export run --tolerance little": "--tolerance: 'little' is not",
    # images
    "eval run --blank": "--blank: expected at least one argument",
    "eval run --episodes 1 --blank front_rgb": "--blank front_rgb: the policy reads no images",
    f"eval {STUDENT} --episodes 1 --blank front_rg": "image; did you mean front_rgb?",
    f"eval {STUDENT} --episodes 1 --blank wrist_rgb student": "--blank student: the policy",
    "play run --views x.png": "--views x.png: it is cut from a video; add --video",
    "play run --video x.mp4 --views x.gif": "--views x.gif: the file must end in .png",
    "play run --video x.mp4 --views nofolder/x.png": "the folder nofolder does not exist",
    "play run --video x.mp4 --views x.png": "--views x.png: the policy of panda_lift_cube sees no",
    # recordings
    "record": "policy, out",
    "record run": "required: out",
    "record nofile rows": "nofile does not exist; give a run folder",
    "record run rows --episodes 0": "--episodes: '0'",
    "record run rows --num-envs none": "--num-envs: 'none'",
    "record run rows --seed -1": "--seed: '-1'",
    "record run rows task=panda_lift_cub": "did you mean panda_lift_cube?",
    "record run rows num_env=3": "did you mean num_envs?",
    f"record run rows {TERM}.history=2": "the policy reads 'teacher', 22 numbers",
    f"record {STUDENT} rows task=panda_lift_cube": "the policy reads 'student', 7 numbers",
    "record run run": "run is not empty; choose another folder",
    "record run file.txt": "file.txt",
    "record run file.txt/rows": "file.txt",
    # encoders
    "pretrain": "required: data",
    "pretrain nofile": "nofile has no data_batch_1.bin",
    "pretrain empty --out new": "empty has no data_batch_1.bin",
    "pretrain file.txt": "file.txt has no data_batch_1.bin",
    "pretrain run/policy --out new": "run/policy holds no complete recording",
    "pretrain empty --epochs 0": "--epochs: '0'",
    "pretrain empty --seed x": "--seed: 'x'",
    "pretrain empty --out run": "run exists already; remove it or choose another folder",
    # speed
    "bench render --rounds 0": "--rounds: '0'",
    "bench render --steps 1.5": "--steps: '1.5'",
    "bench render task=panda_lift_cub": "did you mean panda_lift_cube?",
    "bench render task=panda_lift_cube": "draws nothing: list images in an observation group",
    "bench overlap algo=sac": "algo=sac collects and learns in turns",
    "bench scale --rounds 0": "--rounds: '0'",
    "bench scale task=panda_lift_cube_vision": "algo=distill trains in one process",
    "bench onnx": "required: policy",
    "bench onnx nofile.onnx": "nofile.onnx is not a file",
    "bench onnx run": "run is not a file",
    "bench onnx text.onnx": "text.onnx",
    "bench onnx cut.onnx": "cut.onnx",
    "bench onnx text.onnx --calls 0": "--calls: '0'",
}
DAMAGED = {
    "eval flipped --episodes 1": "flipped/policy/policy.safetensors does not match its checksum",
    "export flipped": "flipped/policy/policy.safetensors does not match its checksum",
    "record flipped rows": "flipped/policy/policy.safetensors does not match its checksum",
    "eval wrecked --episodes 1": "state.json is missing",
}


def test_there_are_enough_bad_lines():
    assert len(REFUSED) >= 170


@pytest.mark.parametrize("line", REFUSED)
def test_an_invalid_line_exits_with_2_and_one_line_that_says_why(line, here, capfd):
    with at_most(5.0):
        code = call(line)
    check_refusal(code, *capfd.readouterr(), 2, REFUSED[line])


@pytest.mark.parametrize("line", DAMAGED)
def test_data_that_cannot_be_trusted_exit_with_3_and_the_name_of_the_file(line, here, capfd):
    code = call(line)
    check_refusal(code, *capfd.readouterr(), 3, DAMAGED[line])


@pytest.mark.parametrize("logger", ["wandb", "swanlab", "trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_named_with_its_package(
    logger, tmp_path, monkeypatch, capfd
):
    for package in ("wandb", "swanlab", "trackio", "mlflow"):
        monkeypatch.setitem(sys.modules, package, None)
    if logger != "swanlab":  # TorchRL does not know it
        monkeypatch.setattr(f"torchrl.record.loggers.{logger}._has_{logger}", False, raising=False)
    code = call(f"train {SMALL} out={tmp_path} loggers=[{logger}]")
    check_refusal(code, *capfd.readouterr(), 2, f"pip install {logger}")


@pytest.mark.parametrize("threads", ["0", "two", "4,2", "-1"])
def test_a_thread_count_that_is_none_is_refused(threads, here, monkeypatch, capfd):
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    check_refusal(call("tasks"), *capfd.readouterr(), 2, f"OMP_NUM_THREADS={threads}")


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("can't allocate memory: 9 GB")],
)
def test_too_little_memory_is_one_line(error, here, monkeypatch, capfd):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr("penspin_style.train.environment.Env", fail)
    code = call(f"train {SMALL} out=elsewhere")
    check_refusal(code, *capfd.readouterr(), 2, "not enough memory; a smaller num_envs")


def test_a_mistake_of_ours_is_not_hidden_as_one_of_the_user(here, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a bug")

    monkeypatch.setattr("penspin_style.train.environment.Env", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        call(f"train {SMALL} out=elsewhere")


def test_ctrl_c_anywhere_is_one_line_and_the_code_of_a_signal(here, monkeypatch, capfd):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("penspin_style.train.environment.Env", interrupt)
    check_refusal(
        call(f"train {SMALL} out=elsewhere"), *capfd.readouterr(), 130, "penspin: interrupted"
    )


# In a process of its own.


def python(*argv, **kwargs):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *argv], env=env, capture_output=True, text=True, timeout=120, **kwargs
    )


@pytest.mark.parametrize(
    "line",
    [
        "trian",
        "train num_env=16",
        "train task=panda_lift_cub",
        "train algo.gamma=nan",
        "eval nofile",
    ],
)
def test_a_bad_line_says_the_same_in_a_shell(line, here):
    done = python("-m", "penspin_style", *line.split(), cwd=here)
    check_refusal(done.returncode, done.stdout, done.stderr, 2, REFUSED[line])


@pytest.mark.parametrize("verb", ["", *VERBS, *BENCHES])
def test_help_answers_in_less_than_a_second_without_torch(verb):
    seconds = []
    for _ in range(3):
        began = computed()
        done = python("-X", "importtime", "-m", "penspin_style", *verb.split(), "--help")
        seconds.append(computed() - began)
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: penspin {verb}".strip())
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"torch", "numpy", "mujoco", "warp", "hydra", "penspin_style.cli.verb"}
    print(f"\npenspin {verb} --help: {statistics.median(seconds):.2f} s")
    assert statistics.median(seconds) < 1.0


def test_importing_the_package_imports_no_engine_and_takes_less_than_a_third_of_a_second():
    code = (
        "import sys, time; t = time.process_time(); import penspin_style; "
        "print(time.process_time() - t, *sys.modules)"
    )
    times = []
    for _ in range(3):
        took, *modules = python("-c", code).stdout.split()
        times.append(float(took))
        assert "penspin_style" in modules
        assert not {"torch", "warp", "mujoco", "numpy", "tensordict"} & set(modules)
    print(f"\nimport penspin_style: {statistics.median(times) * 1000:.1f} ms")
    assert statistics.median(times) < 0.3


def test_json_is_exactly_one_object_on_standard_output(here, tmp_path):
    for line, keys in (
        ("tasks --json", {"tasks"}),
        (
            f"train --json {SMALL} out={tmp_path}",
            {"folder", "iteration", "samples", "success_rate", "exit_code"},
        ),
        (
            "eval run --json --episodes 2",
            {"policy", "task", "success_rate", "interval", "episodes", "seed", "return"},
        ),
    ):
        done = python("-m", "penspin_style", *line.split(), cwd=here)
        assert done.returncode == 0, done.stderr
        value = json.loads(done.stdout)  # nothing before it, nothing after it
        assert isinstance(value, dict) and keys <= set(value)
        assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert set(value["reward"]) == {"reach", "grasp", "close", "lift"}


def test_overrides_may_stand_anywhere(capsys):
    for line in (
        "train num_envs=7 seed=5 --print-config",
        "train num_envs=7 --print-config seed=5",
        "train --print-config num_envs=7 seed=5",
        "train seed=5 --json --print-config num_envs=7",
    ):
        assert call(line) == 0
        printed = parse_mapping(capsys.readouterr().out)  # JSON is YAML too
        assert (printed["num_envs"], printed["seed"]) == (7, 5)


def test_the_configuration_is_printed_as_json_where_that_is_asked_for(capsys):
    assert call("train --json --print-config task=pen_spin name=12e5") == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["task_name"], printed["name"]) == ("pen_spin", "12e5")
    assert call("train --print-config task=pen_spin name=12e5") == 0
    assert parse_mapping(capsys.readouterr().out) == printed


def test_a_task_in_the_current_folder_is_found_by_the_installed_command(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "reach.py").write_text("from tests.support.toy import TASK\n")
    # -P: as the installed command, python does not look in the current folder by itself
    argv = ("-P", "-m", "penspin_style", "train", "task=mine.reach", "--print-config")
    done = python(*argv, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("task_name: tests.support.toy\n")  # where its class is


def test_the_printed_configuration_is_the_one_that_trains(here, capsys):
    from omegaconf import OmegaConf

    assert call("train --print-config num_envs=7 algo.gamma=0.5") == 0
    printed = OmegaConf.create(capsys.readouterr().out)
    assert (printed.num_envs, printed.algo.gamma, printed.task_name) == (7, 0.5, "panda_lift_cube")
    cfg, _, resolved = compose_train(["num_envs=7", "algo.gamma=0.5"])
    assert OmegaConf.create(resolved) == printed
    assert cfg.num_envs == 7
