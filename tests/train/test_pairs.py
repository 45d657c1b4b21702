"""Every task with every algorithm: two iterations, or one line that says why not."""

import pytest

import tasks
from penspin_style.algo.registry import algorithm_names
from tests.support import training

SMALL = (
    *("num_envs=2", "algo.horizon=2", "total_samples=8", "task.episode_length=3", "loggers=[csv]"),
    *("eval_every=0", "final_episodes=1", "video=false", "checkpoint_every=9"),
)
NO_OBJECT = r"has no object to remove: set algo\.absent_object=0$"
GROUP = r"algo\.group=student: the task observes no such group; it has teacher"
REFUSED = {
    ("panda_lift_cube", "distill"): GROUP,
    ("pen_grasp", "distill"): NO_OBJECT,
    ("pen_spin", "distill"): NO_OBJECT,
}
RECORDED = r"algo\.init_from must be the folder of a student, got nothing$"
PAIRS = [(task, algo) for task in tasks.task_names() for algo in algorithm_names()]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("task", "algo"), PAIRS)
def test_a_pair_trains_two_iterations_or_says_why_it_cannot(tmp_path, task, algo):
    own = ("algo.group_size=2",) if algo == "grpo" else ()
    overrides = (f"task={task}", f"algo={algo}", *SMALL, *own)
    # what they learn from is given: tests/train/test_run_clone.py
    if algo in ("act", "clone", "diffusion"):
        with pytest.raises(ValueError, match=RECORDED) as caught:
            training.make(tmp_path, *(w for w in overrides if w != "algo.horizon=2"))
        assert "\n" not in str(caught.value)
        return
    if (task, algo) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[task, algo]) as caught:
            training.make(tmp_path, *overrides)
        assert "\n" not in str(caught.value)
        return
    rows = training.rows(training.fit(tmp_path, *overrides))
    assert [(row["iteration"], row["samples"]) for row in rows] == [("1", "4"), ("2", "8")]
    assert all(float(row["train/skipped_updates"]) == 0.0 for row in rows)
