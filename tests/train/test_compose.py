"""From overrides to a configuration and back: which algorithm, which values, what is refused."""

import dataclasses
import subprocess
import sys
from importlib.metadata import EntryPoint

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import tasks
from penspin_style.algo.augment import AugmentConfig
from penspin_style.algo.imitation import DistillConfig
from penspin_style.algo.ppo import PPOConfig
from penspin_style.algo.registry import algorithm_names, find_algorithm
from penspin_style.config import TrainConfig, weights_folder
from penspin_style.system.plain_yaml import parse_mapping
from penspin_style.train.compose import (
    FOLDER,
    UsageError,
    compose_train,
    differences,
    saved_overrides,
)
from penspin_style.train.find_task import task_names
from penspin_style.train.folder import check_changes
from tests.support.composed import is_as_recorded, saved

VISION = "task=panda_lift_cube_vision"


# Which algorithm.


def test_a_task_chooses_its_algorithm_and_an_override_may_name_it():
    for overrides in ((VISION,), (VISION, "algo=distill")):
        cfg, task, text = compose_train(overrides)
        assert type(cfg.algo) is DistillConfig and type(cfg.algo.augment) is AugmentConfig
        assert task.__name__ == "PandaLiftCubeVision"
        assert OmegaConf.create(text).algo.name == "distill"
    for name in ("panda_lift_cube", "panda_pick_cube"):
        assert type(compose_train([f"task={name}"])[0].algo) is PPOConfig
        assert type(compose_train([f"task={name}", "algo=ppo"])[0].algo) is PPOConfig


def test_the_vision_task_begins_from_its_teacher_and_says_how_far_its_cameras_see():
    cfg, _, _ = compose_train([VISION])
    assert (weights_folder(cfg.algo.teacher) / "policy" / "card.json").exists()
    assert (weights_folder(cfg.algo.encoder) / "card.json").exists()
    assert cfg.algo.max_depth.keys() == cfg.task.cameras.keys() == {"front", "wrist"}
    assert cfg.algo.group in cfg.task.observation


def test_values_below_the_algorithm_can_be_set():
    overrides = ("algo.horizon=7", "algo.augment.shift=3", "algo.max_depth.front=1.5",
             "algo.hidden=[3,4]", "algo.augment.brightness=[1,1]")  # fmt: skip
    algo = compose_train([VISION, *overrides])[0].algo
    assert (algo.horizon, algo.augment.shift, algo.hidden) == (7, 3, [3, 4])
    assert algo.max_depth == {**compose_train([VISION])[0].algo.max_depth, "front": 1.5}
    assert algo.augment.brightness == [1.0, 1.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("algo=nonsense",),
            "there is no such algorithm; there are act, clone, ddpg, diffusion, distill, grpo, "
            "ppo, sac",
        ),
        (("algo=distil",), "algo=distil: there is no such algorithm; did you mean distill?"),
        (("algo=ppo", "algo=distill"), "algo=distill: the algo is ppo already"),
        (("algo=null",), "algo=None: there is no such algorithm"),
        ((VISION, "algo.name=ppo"), "algo.name must be distill, got ppo"),
        ((VISION, "algo.clip_coef=0.1"), "unknown key 'algo.clip_coef'"),
        (("algo.teacher=x",), "unknown key 'algo.teacher'"),
        ((VISION, "algo.horizn=3"), "unknown key 'algo.horizn'; did you mean algo.horizon?"),
        ((VISION, "algo.augment=null"), "algo.augment is a group; set one of its keys"),
        ((VISION, "algo.max_depth.back=1"), "unknown key 'algo.max_depth.back'; did"),
        ((VISION, "algo.augment.noise=nan"), "algo.augment.noise must be finite, got nan"),
        ((VISION, "algo=ppo", "algo.max_depth.front=1"), "unknown key 'algo.max_depth.front'"),
        (("task=panda_pick_cube", "algo=distill", "algo.clip_coef=1"), "key 'algo.clip_coef'"),
        (
            ("task=pen_spin_student", "algo=ppo", "student=dagger_proprio"),
            "sets algo.beta_iterations, which task=pen_spin_student algo=ppo does not have; it is "
            "for task=pen_spin_student algo=distill",
        ),
        ((VISION, "task.cameras.front.height=0"), "task.cameras.front must have at least one"),
        ((VISION, "task.observation.student.front_rgb.noise=1"), "images get theirs from algo"),
        ((VISION, "task.latency.student.weights=[0.0]"), "task.latency.student.weights must be"),
    ],
)
def test_invalid_overrides_are_refused_in_one_line(overrides, message):
    with pytest.raises(UsageError) as caught:
        compose_train(overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("task", "algo"),
    [
        ("pen_spin", "distill"),
        ("panda_lift_cube", "distill"),
        ("panda_lift_cube_vision", "ppo"),
        ("pen_spin_student", "ppo"),
    ],
)
def test_a_pair_without_a_file_has_the_defaults_of_both(tmp_path, task, algo):
    assert not (FOLDER / "algo" / task / f"{algo}.yaml").exists()
    path, _ = saved(tmp_path, f"task={task}", f"algo={algo}")
    cfg, _, _ = compose_train(saved_overrides(path))
    assert dataclasses.replace(cfg, task=None) == TrainConfig(algo=find_algorithm(algo).Config())


def test_every_file_of_a_pair_names_a_task_and_an_algorithm():
    for file in (FOLDER / "algo").rglob("*.yaml"):
        assert (file.parent.name, file.stem) in {
            (task, algo) for task in tasks.task_names() for algo in algorithm_names()
        }


# Texts.


TYPED = ("1e45678", "12e5", "true", "1.10", "1_000", "0x10", "nan", "-inf", "007", "1:30", "off")


@pytest.mark.parametrize("text", TYPED)
def test_a_text_stays_as_it_was_typed(tmp_path, text):
    cfg, _, resolved = compose_train([VISION, f"name={text}", f"algo.teacher={text}"])
    assert (cfg.name, cfg.algo.teacher) == (text, text)
    (tmp_path / "config.yaml").write_text(resolved)
    (word,) = (
        w for w in saved_overrides(tmp_path / "config.yaml") if w.startswith("algo.teacher=")
    )
    assert OverridesParser.create().parse_override(word).value() == text


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("out=/data/lr=0.1", "\"out='/data/lr=0.1'\""),
        ("name=\u00fcn\u00ef", "\"name='\u00fcn\u00ef'\""),
        ("name=run(2)", "\"name='run(2)'\""),
        ("name=a,b", "\"name='a,b'\""),
        ("name=it's", "\"name='it\\\\'s'\""),
        ("name=5$(x)", "\"name='5\\$(x)'\""),
    ],
)
def test_a_text_that_hydra_cannot_read_is_shown_in_quotation_marks(word, hint):
    with pytest.raises(UsageError) as caught:
        compose_train([word])
    assert str(caught.value).endswith(f"a text of such characters is quoted: {hint}")
    done = subprocess.run(["bash", "-c", f"printf %s {hint}"], capture_output=True, check=True)
    again = done.stdout.decode()  # as a shell hands it on
    key, _, value = word.partition("=")
    assert getattr(compose_train([again])[0], key) == value


def test_what_an_interpolation_stands_for_is_saved(monkeypatch):
    monkeypatch.setenv("PENSPIN_TEST_NAME", "of the environment")
    cfg, _, text = compose_train(["name=${oc.env:PENSPIN_TEST_NAME}", "seed=${num_envs}"])
    assert (cfg.name, cfg.seed) == ("of the environment", 512)
    assert parse_mapping(text)["name"] == cfg.name and "${" not in text


# Which tasks.

OWN = """
import tests.support.toy as toy
class Mine(toy.Cart):
    pass
TASK = Mine
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package in the current folder, which is not searched for imports."""
    package = tmp_path / "ownpackage"
    package.mkdir()
    (package / "reach.py").write_text(OWN)
    (package / "broken.py").write_text("import math\nimport nosuchlib\n")
    (package / "wrong.py").write_text("x = 1\nx = y\n")
    (package / "typo.py").write_text("x = 1\ndef f(:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield package
    for name in [name for name in sys.modules if name.split(".")[0] == "ownpackage"]:
        del sys.modules[name]


def test_a_task_of_ones_own_is_found_in_the_current_folder_after_all_that_is_installed(own):
    before = list(sys.path)
    sys.modules.pop("this", None)
    (own.parent / "this.py").write_text("raise SystemExit('this shadows the standard library')")
    (own / "reach.py").write_text(f"import contextlib, io\n"
                                  f"with contextlib.redirect_stdout(io.StringIO()):\n"
                                  f"    import this\n{OWN}")  # fmt: skip
    _, task, text = compose_train(["task=ownpackage.reach"])
    assert task.__name__ == "Mine" and text.startswith("task_name: ownpackage.reach\n")
    assert sys.path == before


def test_a_file_does_not_find_it(own):
    overrides = ["task=ownpackage.reach"]
    with pytest.raises(UsageError, match=r"'ownpackage\.reach', which is not registered; if you"):
        compose_train([], overrides)
    assert "ownpackage.reach" not in sys.modules
    assert compose_train(overrides, overrides)[1].__name__ == "Mine"
    assert compose_train([], overrides, trusted=["ownpackage.reach"])[1].__name__ == "Mine"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("broken", r"ModuleNotFoundError: No module named 'nosuchlib' \(.*broken\.py:2\)"),
        ("wrong", r"NameError: name 'y' is not defined \(.*wrong\.py:2\)"),
        ("typo", r"SyntaxError: .*typo\.py:2\)"),
        ("nothing", r"there is no task 'ownpackage\.nothing' \(no module ownpackage\.nothing\)"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line_with_its_place(own, name, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        compose_train([f"task=ownpackage.{name}"])
    assert "\n" not in str(caught.value)


def test_an_installed_package_registers_its_tasks(own, monkeypatch):
    monkeypatch.syspath_prepend(str(own.parent))
    entries = [EntryPoint(n, f"ownpackage.{n}", "penspin_style.tasks") for n in ("broken", "reach")]
    monkeypatch.setattr(
        "penspin_style.env.task.entry_points",
        lambda group: entries if group == "penspin_style.tasks" else [],
    )
    assert task_names() == [*tasks.task_names(), "broken", "reach"]
    _, task, text = compose_train(["task=reach"])
    assert task.__name__ == "Mine" and text.startswith("task_name: ownpackage.reach\n")
    for name in ("reach", "ownpackage.reach"):  # a file may name it now
        assert compose_train([], [f"task={name}"])[1] is task
    with pytest.raises(UsageError, match="task 'broken' cannot be imported: ModuleNotFoundError"):
        compose_train(["task=broken"])
    with pytest.raises(
        UsageError, match="it is for task=pen_spin"
    ):  # the broken one is passed over
        compose_train(["ablation=no_z_reward"])


# And back.


@pytest.mark.parametrize("name", tasks.task_names())
def test_a_saved_configuration_reproduces_task_and_algorithm(tmp_path, name):
    path, text = saved(tmp_path, f"task={name}")
    assert is_as_recorded(text, f"task={name}")
    overrides = saved_overrides(path)
    assert overrides[0] == f"task={name}"
    again = compose_train(overrides)[2]
    before, after = OmegaConf.create(text), OmegaConf.create(again)
    for key in ("task_name", "task", "algo", "sim"):
        assert before[key] == after[key]
    assert differences(text, again) == {}


FORMER = ("algo.memory=9", "algo.holdout=0.25", "algo.network=pictures")


def test_former_names_of_keys_and_values_are_read_from_command_lines_and_files(tmp_path):
    named = ("algo.replay_capacity=9", "algo.absent_object=0.25", "algo.network=images")
    cfg, _, text = compose_train([VISION, *FORMER])
    assert text == compose_train([VISION, *named])[2]
    assert (cfg.algo.replay_capacity, cfg.algo.absent_object) == (9, 0.25)
    older = text.replace("replay_capacity: 9", "memory: 9")
    older = older.replace("network: images", "network: pictures")
    older = older.replace("absent_object: 0.25", "holdout: 0.25")
    assert older.count("memory: 9") == older.count("pictures") == older.count("holdout") == 1
    (tmp_path / "config.yaml").write_text(older)
    assert compose_train([], saved_overrides(tmp_path / "config.yaml"))[2] == text
    assert differences(older, text) == {}
    now = compose_train([VISION, *named, "algo.replay_capacity=5"])[2]
    assert differences(older, now) == {"algo.replay_capacity": ("9", "5")}
    with pytest.raises(UsageError, match="unknown key"):
        compose_train(["task=panda_lift_cube", FORMER[0]])  # PPO has neither name


@pytest.mark.parametrize("folder", ["panda_lift_cube_vision", "pen_spin/student"])
def test_a_shipped_student_is_configured_as_its_file_says(folder):
    path = weights_folder(f"pretrained:{folder}") / "config.yaml"
    written = parse_mapping(path.read_text())["algo"]
    algo = compose_train([], saved_overrides(path))[0].algo
    older = (written["holdout"], written["memory"])
    assert (algo.absent_object, algo.replay_capacity) == older
    assert algo.network == ("temporal" if "pen" in folder else "images")


CHANGED = (
    *("algo.epochs=9", "algo.hidden=[5,6]", "algo.augment.noise=0.125", "algo.replay_capacity=77"),
    *("algo.train_encoder=true", "algo.max_depth.wrist=0.75", "algo.augment.brightness=[0.5,2]"),
    *("task.cameras.wrist.width=48", "task.latency.student.shared=false", "sim.nthread=1"),
    *("task.observation.student.front_rgb.history=2", "task.visual_randomization=false"),
    *("task.latency.student.weights=[0.5,0.25,0.25]", "sim.nconmax=null"),
)


def test_what_was_changed_comes_back_too(tmp_path):
    path, text = saved(tmp_path, VISION, *CHANGED)
    cfg, _, again = compose_train(saved_overrides(path))
    assert differences(text, again) == {}
    default = compose_train([VISION])[2]
    assert len(differences(text, default)) == len(CHANGED) - 1  # nconmax is null anyway
    assert (cfg.algo.replay_capacity, cfg.task.cameras["wrist"].width) == (77, 48)
    assert cfg.task.latency["student"].weights == [0.5, 0.25, 0.25]


def with_teacher(folder, text, teacher):
    """Overrides of a run whose teacher lies in a folder of this name."""
    cfg = OmegaConf.create(text)
    cfg.algo.teacher = teacher
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    return saved_overrides(folder / "config.yaml")


NAMES = (
    *("", "a/b-c_1.d", "/tmp/a b (c)=d,e", "it's", 'say "so"', "back\\slash\\", "a\\'b", "null"),
    *("true", "12", "1e3", "-x", "[a]", "{a: b}", "a: b", "#a", " a ", "\u00e4", "nan", "~/x"),
)


def test_any_folder_name_comes_back(tmp_path):
    text = compose_train([VISION])[2]
    for name in NAMES:
        overrides = with_teacher(tmp_path, text, name)
        (word,) = (word for word in overrides if word.startswith("algo.teacher="))
        assert str(OverridesParser.create().parse_override(word).value()) == name
    for name in ("", "/tmp/a b (c)=d,e", "it's"):
        assert compose_train(with_teacher(tmp_path, text, name))[0].algo.teacher == name


def test_a_configuration_from_before_there_was_a_choice_is_of_ppo(tmp_path):
    path, text = saved(tmp_path, "task=panda_lift_cube")
    cfg = OmegaConf.create(text)
    del cfg.algo.name
    path.write_text(OmegaConf.to_yaml(cfg))
    assert "algo=ppo" in saved_overrides(path)
    assert type(compose_train(saved_overrides(path))[0].algo) is PPOConfig


def test_a_run_from_before_runs_could_begin_from_a_policy_resumes_unchanged(tmp_path):
    path, text = saved(tmp_path, "task=panda_lift_cube")
    path.write_text(text.replace("  init_from: ''\n", ""))
    assert differences(path.read_text(), text) == {"algo.init_from": ("absent", "")}
    assert check_changes(tmp_path, text, []) == []


# The values themselves.


def test_every_algorithm_has_its_own_name_and_defaults_that_are_legal():
    assert {*algorithm_names()} >= {"distill", "ppo"}
    for name in algorithm_names():
        assert find_algorithm(name).Config().name == name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ppo"}, "algo.name must be distill, got ppo"),
        *(
            ({key: 0}, rf"algo\.{key} must be >= 1, got 0")
            for key in ("horizon", "epochs", "minibatch_size", "latent", "depth_pixels")
        ),
        *(
            ({key: -1}, rf"algo\.{key} must be >= 0")
            for key in ("replay_capacity", "beta_iterations")
        ),
        (
            {"replay_capacity": 5, "rollouts": "x"},
            r"algo\.replay_capacity must be 0 where algo\.rollouts is given",
        ),
        ({"absent_object": 1.0}, r"algo\.absent_object must be in \[0, 1\), got 1\.0"),
        ({"absent_object": -0.1}, r"algo\.absent_object must be in"),
        *(
            ({key: value}, rf"algo\.{key} must be finite and > 0")
            for key in ("learning_rate", "final_learning_rate", "max_grad_norm")
            for value in (0.0, -1.0, float("inf"), float("nan"))
        ),
        ({"max_depth": {"front": 1.0, "wrist": 0.0}}, r"algo\.max_depth\.wrist must be > 0"),
        ({"hidden": [8, 0]}, r"algo\.hidden must be sizes >= 1"),
        ({"activation": "swish"}, r"algo\.activation must be elu, relu, silu, tanh, got swish"),
    ],
)
def test_an_invalid_distillation_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DistillConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(
            ({key: value}, rf"algo\.augment\.{key} must be finite and >= 0")
            for key in ("shift", "noise", "depth_edge", "depth_jitter", "depth_disparity")
            for value in (-1, float("inf"))
        ),
        ({"depth_lines": -1}, r"algo\.augment\.depth_lines must be finite and >= 0"),
        *(
            ({key: value}, rf"algo\.augment\.{key} must be in \[0, 1\]")
            for key in ("depth_dropout", "depth_blackout")
            for value in (-0.1, 1.1)
        ),
        *(
            ({key: value}, rf"algo\.augment\.{key} must be \[low, high\]")
            for key in ("brightness", "depth_line_value")
            for value in ([2.0, 1.0], [1.0], [-1.0, 1.0], [0.0, float("inf")])
        ),
    ],
)
def test_an_invalid_augmentation_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**changes)
