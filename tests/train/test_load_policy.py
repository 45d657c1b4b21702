"""Where a policy's environment comes from, and what a file of somebody else's cannot do."""

import json
import os
import pathlib
import shutil
import sys

import onnx
import pytest
import torch
from safetensors.torch import load, save

from penspin_style import storage
from penspin_style.deploy.bundle import CARD_KEY
from penspin_style.deploy.export import export
from penspin_style.nets.policy import load_policy
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.compose import UsageError, compose_train
from penspin_style.train.load_policy import open_policy
from penspin_style.train.run import Run
from tests.support.damage import BOMB
from tests.support.terminal import call, check_refusal
from tests.support.work import at_most

ROOT = pathlib.Path(__file__).parents[2]
SHIPPED = ROOT / "outputs" / "pretrained"
OVERRIDES = (
    *("num_envs=2", "algo.horizon=4", "total_samples=8", "eval_every=0", "final_episodes=2"),
    *("video=false", "loggers=[csv]", "task.episode_length=3"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory, one_thread):
    """A run at another rate, with other actions than the task's defaults."""
    out = tmp_path_factory.mktemp("out")
    overrides = [*OVERRIDES, "task.control_dt=0.1", "task.move_scale=0.0625", f"out={out}"]
    trained = Run(*compose_train(["task=panda_lift_cube", *overrides]))
    assert trained.fit(quiet=True) == 0
    return trained.folder


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run / "policy", tmp_path / "mine")
    return tmp_path / "mine"


def edited(folder, **files):
    """Publish a folder again with other files; None leaves one out."""
    _, contents = storage.read_verified(folder, limit=2**30)
    storage.remove(folder)
    changed = {name.replace("_", "."): content for name, content in files.items()}
    with storage.publish(folder, {}) as stage:
        for name, content in {**contents, **changed}.items():
            if content is not None:
                (stage / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "policy.onnx"
    export(*load_policy(run / "policy"), path, samples=1)
    return path


def onnx_of(exported, path, **changes):
    """Copy an ONNX file, and change what its card says."""
    model = onnx.load(exported)
    (entry,) = (p for p in model.metadata_props if p.key == CARD_KEY)
    entry.value = json.dumps(json.loads(entry.value) | changes)
    onnx.save(model, path)
    return path


def check_world(source):
    env = source.env(1, 0)
    assert (env.cfg.control_dt, env.task.actions[0].scale) == (0.1, 0.0625)
    assert env.cfg.episode_length == 3
    assert source.card.actions == env.task.actions


# Which environment.


def test_a_copied_policy_folder_keeps_the_world_that_it_was_trained_in(run, copied):
    for path in (run, run / "policy", copied):
        check_world(open_policy(path, []))


def test_what_stands_beside_a_policy_folder_does_not_change_its_world(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("move_scale: 0.0625", "move_scale: 0.01"))
    check_world(open_policy(folder, []))


def test_an_older_run_is_read_from_the_configuration_of_the_run(run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    edited(folder / "policy", config_yaml=None)
    for path in (folder, folder / "policy"):
        check_world(open_policy(path, []))
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("control_dt: 0.1", "control_dt: 0.05"))
    with pytest.raises(UsageError, match=r"acts every 0\.1 s, the environment every 0\.05 s"):
        open_policy(folder, []).env(1, 0)


def test_a_policy_without_a_configuration_has_its_cards_rate_or_is_refused(copied):
    edited(copied, config_yaml=None)
    (copied.parent / "config.yaml").write_text("task_name: of.somebody.else\n")  # not its own
    source = open_policy(copied, [])
    assert source.cfg.task.control_dt == 0.1
    with pytest.raises(UsageError, match=r"tcp_x: the policy has scale 0\.0625, the env.* 0\.025"):
        source.env(1, 0)
    found = open_policy(copied, ["task.move_scale=0.0625"]).env(1, 0)
    assert (found.cfg.control_dt, found.task.actions[0].scale) == (0.1, 0.0625)


def test_a_copied_onnx_has_its_cards_rate_or_is_refused(run, exported, tmp_path):
    path = onnx_of(exported, tmp_path / "policy.onnx")
    assert open_policy(path, ["task.move_scale=0.0625"]).env(1, 0).cfg.control_dt == 0.1
    with pytest.raises(UsageError, match=r"scale 0\.0625, the environment 0\.025"):
        open_policy(path, []).env(1, 0)
    shutil.copytree(run / "policy", tmp_path / "policy")  # in its run's folder it finds the rest
    check_world(open_policy(path, []))


@pytest.mark.parametrize("verb", ["eval", "play", "record"])
def test_every_verb_refuses_another_world_by_name(exported, tmp_path, verb, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = onnx_of(exported, tmp_path / "policy.onnx")
    more = {"eval": "--episodes 1", "play": "--video x.mp4", "record": "rows"}[verb]
    got = call(f"{verb} {path} {more} task.control_dt=0.05")
    check_refusal(
        got, *capsys.readouterr(), 2, "the policy acts every 0.1 s, the environment every"
    )
    assert not (tmp_path / "rows").exists()


def test_a_recording_is_made_in_the_policys_own_world(run, tmp_path, capsys):
    assert call(f"record {run} {tmp_path / 'rows'} --episodes 2 --num-envs 2") == 0
    assert json.loads((tmp_path / "rows" / "card.json").read_text())["control_dt"] == 0.1
    capsys.readouterr()
    got = call(f"record {run} {tmp_path / 'more'} task=panda_lift_cube_vision")
    check_refusal(got, *capsys.readouterr(), 2, "the policy acts every 0.1 s")


def test_a_card_and_a_configuration_of_different_tasks_are_refused(run, copied):
    config = (run / "config.yaml").read_text().replace("panda_lift_cube", "panda_pick_cube")
    edited(copied, config_yaml=config.encode())
    with pytest.raises(UsageError, match=r"unknown key|of the task panda_pick_cube"):
        open_policy(copied, [])


# What a file cannot do.

PAYLOAD = (
    "import pathlib\npathlib.Path({!r}).write_text(__name__)\nfrom tests.support.toy import TASK\n"
)


@pytest.fixture
def payload(tmp_path, monkeypatch):
    """A module that leaves a trace where it is imported; yields its name and the trace."""
    (tmp_path / "innocent.py").write_text(PAYLOAD.format(str(tmp_path / "trace")))
    package = tmp_path / "bundled"
    package.mkdir()
    shutil.move(tmp_path / "innocent.py", package / "innocent.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "bundled.innocent", tmp_path / "trace"
    for name in ("bundled", "bundled.innocent"):
        sys.modules.pop(name, None)


def named(config, name):
    return config.replace("task_name: panda_lift_cube", f"task_name: {name}", 1)


def test_a_configuration_cannot_have_a_module_imported(run, copied, payload, capsys):
    name, trace = payload
    text = (run / "config.yaml").read_text()
    edited(copied, config_yaml=named(text, name).encode())
    check_refusal(
        call(f"eval {copied} --episodes 1"),
        *capsys.readouterr(),
        2,
        f"'{name}', which is not registered; if you trust that module, say task={name} yourself",
    )
    unfinished = copied.parent / "run"
    shutil.copytree(run, unfinished)
    shutil.rmtree(unfinished / "policy")
    (unfinished / "config.yaml").write_text(named(text, name))
    assert call(f"eval {unfinished} --episodes 1") == 2
    assert not trace.exists() and name not in sys.modules


def test_a_card_cannot_have_a_module_imported(exported, tmp_path, payload, capsys):
    name, trace = payload
    path = onnx_of(exported, tmp_path / "policy.onnx", task=name)
    check_refusal(call(f"eval {path}"), *capsys.readouterr(), 2, "which is not registered")
    path = onnx_of(exported, tmp_path / "policy.onnx", task="idlelib.idle")
    check_refusal(call(f"eval {path}"), *capsys.readouterr(), 2, "say task=idlelib.idle yourself")
    assert not trace.exists() and not {name, "idlelib.idle"} & {*sys.modules}


def test_a_module_that_the_user_names_is_imported(exported, tmp_path, payload):
    name, trace = payload
    path = onnx_of(exported, tmp_path / "policy.onnx", task=name)
    with pytest.raises(UsageError, match=r"the configuration is of the task tests\.support\.toy"):
        open_policy(path, [f"task={name}"])
    assert trace.read_text() == name  # it was imported; that its task is another's is found then


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("episode_length: 3", "episode_length: ${oc.env:HOME}", "write the value, not where it"),
        ("episode_length: 3", "episode_length: '${oc.decode:3}'", "write the value, not where it"),
        ("activation: elu", "activation: ${..name}", "algo.activation is '${..name}'"),
        (
            "task_name: panda_lift_cube",
            "task_name: ${oc.env:HOME}",
            "task_name is '${oc.env:HOME}'",
        ),
        ("move_scale: 0.0625", "_target_: os.system", "unknown key 'task._target_'"),
        ("move_scale: 0.0625", "defaults: [x]", "unknown key 'task.defaults'"),
        ("move_scale: 0.0625", "move_scale@task: 0.1", "is not the name of a key"),
        ("move_scale: 0.0625", "? 'move_scale=1 '\n  : 2", "is not the name of a key"),
        ("num_envs: 2", BOMB, "has an alias"),
        ("num_envs: 2", "x: " + "[" * 9000, "nested too deeply"),
        ("sim:\n", "sim: 3\nother:\n", "sim must be a mapping"),
    ],
)
def test_a_configuration_of_somebody_else_only_holds_values(run, copied, old, new, complaint):
    text = (run / "config.yaml").read_text()
    assert old in text
    edited(copied, config_yaml=text.replace(old, new, 1).encode())
    with at_most(3.0), pytest.raises(UsageError) as caught:
        open_policy(copied, [])
    assert complaint in str(caught.value) and "\n" not in str(caught.value)


def test_what_hydra_would_compose_from_elsewhere_is_not(run, copied, tmp_path):
    text = (run / "config.yaml").read_text()
    more = f"defaults: [{{task: {tmp_path}/x}}]\nhydra: {{searchpath: [file://{tmp_path}]}}\n"
    edited(copied, config_yaml=(more + text).encode())
    check_world(open_policy(copied, []))


@pytest.mark.parametrize("name", ["card.json", "config.yaml", "policy.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_policy_folder_with_a_file_without_end_is_refused(copied, name, kind, capsys):
    (copied / name).unlink()
    if kind == "pipe":
        os.mkfifo(copied / name)
    else:
        (copied / name).symlink_to("/dev/zero")
    check_refusal(call(f"eval {copied}"), *capsys.readouterr(), 3, f"{name} is unreadable")


def test_an_unfinished_run_of_a_student_opens_nothing_that_its_configuration_names(
    tmp_path, one_thread
):
    overrides = [*OVERRIDES, "task=panda_lift_cube_vision", f"out={tmp_path}", "checkpoint_every=1"]
    overrides = [w for w in overrides if not w.startswith("task.")]
    teacher, encoder = SHIPPED / "panda_lift_cube", SHIPPED / "nature_cnn_cifar10"
    overrides += [f"algo.teacher={teacher}", f"algo.encoder={encoder}", "task.episode_length=3"]
    trained = Run(*compose_train(overrides))
    assert trained.fit(quiet=True) == 0
    wanted = load((trained.folder / "policy" / "policy.safetensors").read_bytes())
    shutil.rmtree(trained.folder / "policy")
    config = trained.folder / "config.yaml"
    text = config.read_text().replace(str(teacher), "/dev/zero").replace(str(encoder), "/dev/zero")
    config.write_text(text)
    _, state, _ = Checkpoints(trained.folder / "checkpoints").newest()
    source = open_policy(trained.folder, [])
    env = source.env(1, 0)
    assert source.act(env.reset()).shape == (1, 4)
    assert state["algo"]["policy"].keys() == wanted.keys()


# Weights.


def poisoned(folder, name="net.0.weight"):
    weights = load((folder / "policy.safetensors").read_bytes())
    weights[name].view(-1)[0] = float("nan")
    return edited(folder, policy_safetensors=save(weights))


@pytest.mark.parametrize("verb", ["eval {} --episodes 1", "export {}", "record {} {}/rows"])
def test_a_policy_of_no_numbers_is_refused_by_every_verb(copied, verb, capsys):
    poisoned(copied)
    got = call(verb.format(copied, copied.parent))
    check_refusal(got, *capsys.readouterr(), 3, "policy.safetensors: net.0.weight is not finite")


def test_a_teacher_of_no_numbers_teaches_nobody(copied, tmp_path, capsys):
    poisoned(copied, "net.2.bias")
    task = "pen_spin_student" if "pen" in str(copied) else "panda_lift_cube_vision"
    got = call(
        f"train task={task} {' '.join(OVERRIDES[2:])} num_envs=2 out={tmp_path} "
        f"algo.teacher={copied}"
    )
    check_refusal(got, *capsys.readouterr(), 3, "net.2.bias is not finite")


def test_a_checkpoint_of_no_numbers_is_passed_over(run, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    shutil.rmtree(folder / "policy")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    manifest, contents = storage.read_verified(newest, limit=2**30)
    tensors = load(contents["state.safetensors"])
    tensors["algo/policy/net.0.bias"][0] = torch.inf
    contents["state.safetensors"] = save(tensors)
    facts = {k: v for k, v in manifest.items() if not k.endswith("sha256")}
    storage.remove(newest)
    with storage.publish(newest, facts) as stage:
        for name, content in contents.items():
            (stage / name).write_bytes(content)
    source = open_policy(folder, [])
    assert source.card.run.endswith("iteration0")
    assert "algo/policy/net.0.bias is not finite" in capsys.readouterr().err
    for other in sorted((folder / "checkpoints").iterdir())[:-1]:
        storage.remove(other)
    check_refusal(call(f"eval {folder}"), *capsys.readouterr(), 3, "no usable checkpoint")


# What is shipped.


@pytest.mark.parametrize(
    "name",
    [
        "panda_lift_cube",
        "panda_lift_cube_vision",
        "pen_spin/teacher",
        "pen_spin/student_ends",
        "pen_spin/student",
    ],
)
def test_the_shipped_policies_hold_the_configuration_of_their_run(name):
    folder = SHIPPED / name
    text = (folder / "config.yaml").read_text()
    assert storage.read_verified(folder / "policy", limit=2**30)[1]["config.yaml"].decode() == text
    source = open_policy(folder, [])
    assert source.cfg.task.control_dt == source.card.control_dt
