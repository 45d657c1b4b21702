"""What of a task is called when, from its construction to the first step."""

import pathlib

import pytest
import torch

from penspin_style.config import StallConfig, StartsConfig
from penspin_style.env.env import Env
from penspin_style.env.task import Task
from tests.support.rail import Config, Rail


class Watched(Rail):
    """Notes what it is asked, in order, each once in a row."""

    varied = ("body_mass",)

    def progress(self, sim):
        return sim.data.qpos[:, 0].float()

    def learner_acts(self, sim):
        return torch.ones(sim.num_envs, dtype=torch.bool)


ASKED = (
    *("spec", "actions", "joints", "randomize", "start", "vary", "observe", "reward"),
    *("learner_acts", "step_metrics", "episode_metrics", "progress", "start_bank", "start_state"),
    *("reset", "remove_object", "set_start_state", "apply_action", "substeps", "terminated"),
    *("success", "kinds"),
)
BUILD = (
    *("spec", "actions", "joints", "randomize", "start", "vary"),
    *("actions", "observe", "reward", "learner_acts", "step_metrics", "episode_metrics"),
)
RESTART = ("reset", "observe", "learner_acts")


def watch(monkeypatch):
    """The task's class, and the list of what its instances are asked."""
    asked: list[str] = []

    def noted(name, original):
        if isinstance(original, property):

            def read(self):
                asked.append(name)
                return original.fget(self)

            return property(read)

        def call(self, *args, **kwargs):
            asked.append(name)
            return original(self, *args, **kwargs)

        return call

    for name in ASKED:
        original = Watched.__dict__.get(name) or Rail.__dict__.get(name) or Task.__dict__[name]
        monkeypatch.setattr(Watched, name, noted(name, original))
    return Watched, asked


def test_a_task_is_built_observed_and_rewarded_before_its_first_reset(monkeypatch):
    task, asked = watch(monkeypatch)
    env = Env(task(Config(reward={"near": 1.0})), 2)
    assert tuple(asked) == (*BUILD, *RESTART)
    asked.clear()
    root = env.current()
    root.set("action", torch.zeros(2, 1))
    env.step_and_maybe_reset(root)
    assert asked == [
        *("apply_action", "substeps", "reward", "terminated", "success", "observe"),
        *("step_metrics", "learner_acts"),
    ]


def test_where_episodes_begin_elsewhere_progress_is_asked_before_the_first_reset_too(monkeypatch):
    task, asked = watch(monkeypatch)
    Env(task(Config()), 2, starts=StartsConfig(far=0.5), stall=StallConfig(steps=5))
    before = asked[: asked.index("reset")]
    assert tuple(before[: len(BUILD)]) == BUILD
    assert before[len(BUILD)] == "progress"
    assert set(before[len(BUILD) :]) <= {"progress", "start_state", "start_bank"}


def test_the_docstring_and_the_guide_name_that_order():
    said = " ".join((Task.__doc__ or "").split())
    places = [said.index(f"`{name}`") for name in ("spec", "randomize", "start", "vary", "observe")]
    assert places == sorted(places)
    guide = pathlib.Path(__file__).parents[2] / "docs" / "howto" / "add_task.md"
    assert "before any reset" in guide.read_text()


def test_a_world_in_which_nothing_is_randomised_asks_neither_for_the_table_nor_to_vary(monkeypatch):
    task, asked = watch(monkeypatch)
    Env(task(Config(randomize=False)), 2)
    assert "randomize" not in asked and "vary" not in asked


@pytest.mark.parametrize("name", ["observe", "reward", "step_metrics"])
def test_at_build_time_the_simulation_is_the_models_default(name, monkeypatch):
    seen = []
    original = getattr(Rail, name)

    def call(self, sim, *args):
        seen.append(sim.data.qpos.clone())
        return original(self, sim, *args)

    monkeypatch.setattr(Rail, name, call)
    Env(Rail(Config(start=0.4)), 3)
    assert torch.equal(seen[0], torch.zeros(3, 1, dtype=torch.float64))
