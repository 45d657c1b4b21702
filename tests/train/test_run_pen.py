"""Named changes of the pen tasks, as they train: what the networks read, and who drives."""

import pytest
import torch

from penspin_style.nets.policy import load_policy
from penspin_style.train.compose import compose_train, saved_overrides
from tests.support import training
from tests.support.terminal import call
from tests.support.training import rows

SMALL = (
    *("num_envs=8", "algo.horizon=4", "total_samples=64", "task.episode_length=6"),
    *("eval_every=0", "final_episodes=2", "loggers=[csv]", "video=false", "device=cpu"),
)
TEACHER = (
    *("task=pen_spin", "algo.hidden=[16]", "algo.encoders.privileged=[8,4]"),
    *("algo.encoders.points=[4,4]", "algo.num_minibatches=2"),
)
STUDENT = (
    *(
        "task=pen_spin_student",
        "task.observes=published",  # as these teachers read
        "algo.minibatch_size=16",
        "algo.epochs=2",
        "algo.temporal.trunk=[8]",
    ),
    *("algo.temporal.width=8", "algo.temporal.feedforward=8", "algo.temporal.latent=4"),
    *("algo.temporal.fingertips=[4]", "algo.temporal.ends=[4]", "algo.temporal.points=[4]"),
)
PROPRIO = ("proprio", 32, 3)
TOLD = (
    *(("pen_pos", 3, 1), ("pen_scale", 1, 1), ("pen_mass", 1, 1), ("pen_friction", 1, 1)),
    *(("pen_com", 3, 1), ("pen_quat", 4, 1), ("pen_angvel", 3, 1), ("tip_pos", 12, 1)),
    *(("pen_restitution", 1, 1), ("tactile", 32, 1)),
)
POINTS = ("pen_points", 300, 1)
"""Term, numbers of a frame, frames."""

pytestmark = pytest.mark.usefixtures("one_thread")


def fit(out, *overrides):
    return training.fit(out, *overrides, *SMALL)


def make(out, *overrides):
    return training.make(out, *overrides, *SMALL)


def read(run):
    """What the trained network is given: input -> (term, numbers of a frame, frames) of each."""
    policy, card = load_policy(run.folder / "policy")
    assert [i.name for i in card.inputs] == list(policy.in_keys)
    return {
        i.name: tuple((f.name, f.size // f.history, f.history) for f in i.features)
        for i in card.inputs
    }


def check_saved(run, *changed):
    """The run's folder alone says what was chosen: evaluating and playing begin there."""
    overrides = saved_overrides(run.folder / "config.yaml")
    assert set(changed) <= set(overrides)
    again, _, _ = compose_train(overrides)
    assert (again.task, again.algo) == (run.cfg.task, run.cfg.algo)
    assert call(f"eval {run.folder} --episodes 2") == 0


ABLATIONS = {
    None: ({"teacher": (PROPRIO,), "privileged": TOLD, "points": (POINTS,)}, 61, ()),
    "no_tactile": (
        {"teacher": (PROPRIO,), "privileged": TOLD[:-1], "points": (POINTS,)},
        29,
        ("task.tactile=False",),
    ),
    "no_point_cloud": (
        {"teacher": (PROPRIO,), "privileged": TOLD},
        61,
        ("task.point_cloud=False",),
    ),
    "no_privileged": (
        {"teacher": (PROPRIO,), "points": (POINTS,)},
        0,
        ("task.privileged=False",),
    ),
    "no_z_reward": (
        {"teacher": (PROPRIO,), "privileged": TOLD, "points": (POINTS,)},
        61,
        ("task.reward.z_spread=0.0",),
    ),
}


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Each ablation's run, trained once."""
    made = {}

    def teacher(ablation):
        if ablation not in made:
            overrides = [f"ablation={ablation}"] if ablation else []
            made[ablation] = fit(tmp_path_factory.mktemp(f"{ablation}"), *TEACHER, *overrides)
        return made[ablation]

    return teacher


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablated_teacher_reads_what_the_name_says(teachers, ablation):
    inputs, privileged, changed = ABLATIONS[ablation]
    run = teachers(ablation)
    assert len(rows(run)) == 2
    assert read(run) == inputs
    sizes = {name: sum(n * frames for _, n, frames in terms) for name, terms in inputs.items()}
    assert (sizes["teacher"], sizes.get("privileged", 0)) == (96, privileged)
    assert sizes == {i.name: i.size for i in run.env.inputs}
    first = run.algo.policy.encoders["privileged"][0] if privileged else None
    assert first is None or first.in_features == privileged
    check_saved(run, *changed)


def test_an_ablated_run_resumes_under_its_name_and_under_no_other(teachers):
    run = teachers("no_tactile")
    out = run.folder.parent.parent
    assert fit(out, *TEACHER, "ablation=no_tactile", "resume=true").iteration == 2
    with pytest.raises(ValueError, match=r"task\.tactile=False"):
        make(out, *TEACHER, "resume=true")


def test_without_its_weight_the_spread_earns_nothing_and_the_rest_earns_what_it_did(teachers):
    weights = {name: teachers(name).cfg.task.reward for name in (None, "no_z_reward")}
    assert weights[None]["z_spread"] == -1.0 and weights["no_z_reward"]["z_spread"] == 0.0
    assert weights["no_z_reward"] == {**weights[None], "z_spread": 0.0}
    earned = {}
    for name in weights:
        env = teachers(name)._make_env(4, 0)
        pose = env.sim.data.qpos[:, env.task.at : env.task.at + 7]
        pose[:, 2] += 0.2
        pose[:, 3:] = torch.tensor((1.0, 0.0, 0.0, 0.0), dtype=torch.float64)  # upright
        env.sim.forward()
        env.step(env.current().set("action", torch.zeros(4, 16)))
        earned[name] = env.reward_terms["z_spread"]
    assert (earned[None] < -0.1).all()  # the shortest pen is 102 mm long
    assert not earned["no_z_reward"].any()


def test_the_spread_is_rewarded_without_a_cloud_too(teachers):
    run = teachers("no_point_cloud")
    assert run.cfg.task.reward["z_spread"] == -1.0
    assert "reward/z_spread" in run.env.statistics.columns


FELT = {
    "proprio": (("proprio", 32, 30), ("fingertips", 12, 1)),
    "proprio_ends": (("proprio", 32, 30), ("fingertips", 12, 1), ("pen_ends", 6, 3)),
    "proprio_tactile": (("proprio", 32, 30), ("fingertips", 12, 1), ("tactile", 32, 30)),
    "proprio_tactile_ends": (
        *(("proprio", 32, 30), ("fingertips", 12, 1), ("tactile", 32, 30), ("pen_ends", 6, 3)),
    ),
    "proprio_points": (("proprio", 32, 30), ("fingertips", 12, 1), ("pen_points", 300, 1)),
}
DRIVEN = [(mode, who) for who in ("teacher", "student") for mode in FELT]


@pytest.mark.parametrize(("mode", "driver"), DRIVEN)
def test_a_student_reads_what_the_name_says_and_the_named_one_drives(
    teachers, tmp_path, mode, driver
):
    published = mode != "proprio_points"
    name = f"dagger_{mode}" if driver == "student" and published else mode
    overrides = [f"student={name}", f"algo.teacher={teachers(None).folder}"]
    if driver == "student" and not published:
        overrides += ["algo.driver=student", "algo.beta_iterations=0"]
    run = fit(tmp_path, *STUDENT, *overrides)
    betas = [float(row["train/beta"]) for row in rows(run)]
    assert betas == ([1.0, 1.0] if driver == "teacher" else [0.0, 0.0])
    assert read(run) == {"student": FELT[mode]}
    reads = ",".join(term for term, _, _ in FELT[mode])
    check_saved(run, f"task.reads=[{reads}]", f"algo.driver={driver}")


def test_a_student_of_an_ablated_teacher_is_told_so(teachers, tmp_path):
    overrides = (*STUDENT, f"algo.teacher={teachers('no_tactile').folder}")
    with pytest.raises(ValueError, match=r"reads 'privileged' with .*pen_restitution; the env"):
        make(tmp_path, *overrides)
    fit(tmp_path, *overrides, "ablation=no_tactile", "student=proprio_tactile")
