"""Faults of single environments: counted, quarantined, dumped; learning that diverges."""

import itertools
import math

import mujoco
import numpy as np
import pytest
import torch

from penspin_style.__main__ import main
from penspin_style.algo.algorithm import MAX_SKIPPED
from penspin_style.algo.ppo import PPO
from penspin_style.sim.sim import Fault
from penspin_style.train import faults
from penspin_style.train.checkpoint import Checkpoints
from penspin_style.train.run import FaultyRunError
from tests.support.small_run import ITERATION, SMALL, after_iteration, fit, make
from tests.support.training import rows, untimed

pytestmark = pytest.mark.usefixtures("one_thread")


# Faults of one environment.

QUIET = ("num_envs=64", f"total_samples={6 * 64 * 8}", "eval_every=0", "stagger=false")
ENV = {"qpos": 5, "observation": 6, "action": 7, "reward": 8}
# MuJoCo C restarts a world with a NaN position without a word, but counts a warning
QPOS = {
    "mujoco": Fault.WARNING,
    "warp": Fault.NONFINITE | Fault.OBSERVATION | Fault.REWARD,
}
NAN = float("nan")


class Injector:
    """Put a NaN into one environment once per kind, in iterations 2 to 5, and into the loss in 6.

    `ages` holds the step counts right before and after each fault.
    """

    def __init__(self, run):
        self.run, self.steps, self.losses, self.kind = run, 0, 0, None
        self.ages, self.shown = {}, []
        env, algo = run.env, run.algo
        self._wrap(env.task, "apply_action", self._apply_action)
        self._wrap(env.task, "observe", self._observe)
        self._wrap(env.task, "reward", self._reward)
        self._wrap(env, "step_and_maybe_reset", self._step)
        self._wrap(algo, "act", self._act)
        self._wrap(algo, "_losses", self._lose)

    def _wrap(self, owner, name, replacement):
        real = getattr(owner, name)
        setattr(owner, name, lambda *args: replacement(real, *args))

    def _act(self, real, td):
        self.shown.append(bool(torch.isfinite(td["teacher"]).all()))
        # the fourth step of iterations 2, 3, 4, 5
        due = {11: "qpos", 19: "observation", 27: "action", 35: "reward"}
        self.kind = due.get(self.steps)
        td = real(td)
        if self.kind == "action":
            td["action"][ENV["action"], 2] = NAN
        return td

    def _step(self, real, td):
        before = self.run.env.step_count.clone()
        out = real(td)
        after = out[0]["next"]
        self.shown.append(all(bool(torch.isfinite(after[k]).all()) for k in ("teacher", "reward")))
        if self.kind:
            self.ages[self.kind] = before, self.run.env.step_count.clone()
        self.steps += 1
        self.kind = None
        return out

    def _apply_action(self, real, sim, action):
        real(sim, action)
        if self.kind == "qpos":
            sim.data.qpos[ENV["qpos"], 3] = NAN

    def _observe(self, real, sim):
        out = real(sim)
        if self.kind == "observation":
            self.kind = "observation done"  # observe is called again for the restart
            out = {k: v.clone() for k, v in out.items()}
            out["box_pos"][ENV["observation"], 0] = NAN
        return out

    def _reward(self, real, sim, action):
        out = real(sim, action)
        if self.kind == "reward":
            out["lift"] = out["lift"].clone()
            out["lift"][ENV["reward"]] = NAN
        return out

    def _lose(self, real, batch):
        loss, metrics = real(batch)
        self.losses += 1
        return (loss * NAN if self.losses == 5 * 16 + 3 else loss), metrics


@pytest.fixture(scope="module", params=["mujoco", "warp"])
def injected(request, tmp_path_factory):
    run = make(tmp_path_factory.mktemp(request.param), *QUIET, f"sim.engine={request.param}")
    injector = Injector(run)
    assert run.fit(quiet=True) == 0
    return request.param, run, injector


def test_a_nan_in_one_environment_of_64_is_counted_once_under_its_own_name(injected):
    engine, run, _ = injected
    expected = {2: QPOS[engine], 3: Fault.OBSERVATION, 4: Fault.ACTION, 5: Fault.REWARD}
    for row in rows(run):
        found = {f: float(row[f"fault/{f.name.lower()}"]) for f in Fault}
        hit = expected.get(int(row["iteration"]), Fault(0))
        assert found == {f: float(f in hit) for f in Fault}, row["iteration"]
        assert float(row["env/fault"]) == float(bool(hit))


def test_only_the_faulty_environment_is_restarted(injected):
    _, _, injector = injected
    ages = {kind.removesuffix(" done"): pair for kind, pair in injector.ages.items()}
    assert set(ages) == set(ENV)
    for kind, (before, after) in ages.items():
        others = torch.arange(64) != ENV[kind]
        assert after[ENV[kind]] == 0
        assert torch.equal(after[others], before[others] + 1)
        assert before[ENV[kind]] > 0


def test_no_nan_reaches_a_network_a_weight_or_a_metric(injected):
    _, run, injector = injected
    assert len(injector.shown) == 2 * 48 and all(injector.shown)
    state = run.checkpoints.newest()[1]
    assert state["run"]["iteration"] == 6
    for name, tensor in state["algo"]["policy"].items() | state["algo"]["critic"].items():
        assert torch.isfinite(tensor).all(), name
    for row in rows(run):
        assert all(math.isfinite(float(v)) for v in row.values() if v), row
    skipped = [float(row["train/skipped_updates"]) for row in rows(run)]
    assert skipped == [0, 0, 0, 0, 0, 1]


def test_each_fault_leaves_a_dump_from_which_the_step_can_be_repeated(injected):
    engine, run, _ = injected
    dumps = sorted((run.folder / "faults").glob("*.npz"))
    qpos = "+".join(f.name for f in QPOS[engine])
    assert [d.stem for d in dumps] == [
        f"00000002-env5-{qpos}",
        "00000003-env6-OBSERVATION",
        "00000004-env7-ACTION",
        "00000005-env8-REWARD",
    ]
    model = mujoco.MjModel.from_xml_path(str(run.folder / "faults" / "model.xml"))
    data = mujoco.MjData(model)
    for dump in dumps:
        with np.load(dump, allow_pickle=False) as file:
            row, signature = file["state"].astype(np.float64), int(file["signature"])
        assert row.shape == (mujoco.mj_stateSize(model, signature),)
        assert np.isfinite(row).all()  # it is the state before the step
        mujoco.mj_setState(model, data, row, signature)
        mujoco.mj_step(model, data)
        assert data.time == pytest.approx(row[0] + model.opt.timestep)
        assert row[0] == pytest.approx(0.05 * {"2": 11, "3": 19, "4": 27, "5": 35}[dump.stem[7]])


def test_a_fault_does_not_change_the_other_environments(tmp_path):
    """The same run with and without a NaN action: until the next update, the others are equal."""
    roots = []
    for inject in (False, True):
        run = make(tmp_path / str(inject), *QUIET)
        root = run.env.current()
        for t in range(8):
            td = run.algo.act(root)
            if inject and t == 3:
                td["action"][7] = NAN
            _, root = run.env.step_and_maybe_reset(td)
        roots.append(root["teacher"])
        run._lock.close()
    others = torch.arange(64) != 7
    assert torch.equal(roots[0][others], roots[1][others])
    assert not torch.equal(roots[0][7], roots[1][7])


def spoil_actions(monkeypatch, count, *, until=math.inf):
    """Make the actions of the first environments NaN in the first step of every iteration."""
    act, calls = PPO.act, itertools.count()

    def spoiled(self, td):
        td = act(self, td)
        k = next(calls)
        if k % self.horizon == 0 and k < until * self.horizon:
            td["action"][:count] = NAN
        return td

    monkeypatch.setattr(PPO, "act", spoiled)


def test_dumps_are_bounded_over_iterations_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(faults, "MAX_DUMPS", 7)
    monkeypatch.setattr(faults, "MAX_SHARE", 1.0)
    spoil_actions(monkeypatch, 5)
    run = fit(tmp_path, f"total_samples={ITERATION}")
    assert len(list((run.folder / "faults").glob("*.npz"))) == 5
    for total in (3, 4):
        run = fit(tmp_path, f"total_samples={total * ITERATION}", "resume=true")
        assert len(list((run.folder / "faults").glob("*.npz"))) == 7
    assert [float(row["env/fault"]) for row in rows(run)] == [5.0] * 4
    assert sum(f.stat().st_size for f in (run.folder / "faults").iterdir()) < 200_000


def test_a_dump_that_does_not_fit_on_the_disk_is_a_warning(
    tmp_path, full_disk, monkeypatch, capsys
):
    monkeypatch.setattr(faults, "MAX_SHARE", 1.0)
    spoil_actions(monkeypatch, 1, until=1)
    full_disk.add("00000001-env0-ACTION.npz")
    run = make(tmp_path, f"total_samples={ITERATION}")
    assert run.fit() == 0
    assert "warning: faulty state not written" in capsys.readouterr().err
    assert [f.name for f in (run.folder / "faults").iterdir()] == ["model.xml"]


def test_more_than_one_percent_faulty_over_ten_iterations_exits_with_3(
    tmp_path, monkeypatch, capsys
):
    """One of 64 in every iteration: 6 in ten are 0.9 %, 7 are 1.1 %."""
    spoil_actions(monkeypatch, 1)
    overrides = [
        "train",
        "name=run",
        *SMALL,
        *QUIET,
        f"out={tmp_path}",
        f"total_samples={20 * 64 * 8}",
    ]
    assert main(overrides) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1.1% of the environments were faulty over 10 iterations (limit 1%)" in last
    folder, _, messages = Checkpoints(tmp_path / "panda_lift_cube" / "run" / "checkpoints").newest()
    assert (folder.name, messages) == ("00000006", [])


def test_up_to_one_percent_faulty_goes_on(tmp_path, monkeypatch):
    spoil_actions(monkeypatch, 1, until=6)
    run = fit(tmp_path, *QUIET, f"total_samples={12 * 64 * 8}")
    assert [float(row["env/fault"]) for row in rows(run)] == [1.0] * 6 + [0.0] * 6


def test_a_contact_buffer_that_overflows_exits_with_3_and_the_setting_to_raise(tmp_path, capsys):
    overrides = [
        "train",
        *SMALL,
        f"out={tmp_path}",
        "num_envs=2",
        "sim.engine=warp",
        "eval_every=0",
    ]
    assert main([*overrides, "sim.njmax=4"]) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert "a contact buffer overflowed" in last and "set sim.njmax=8" in last


# Divergence.


def spoil_losses(run, starts):
    """Make the losses of MAX_SKIPPED updates in a row NaN, from each of these calls on."""
    losses, calls = run.algo._losses, itertools.count()

    def spoiled(batch):
        loss, metrics = losses(batch)
        k = next(calls)
        return (loss * NAN if any(s <= k < s + MAX_SKIPPED for s in starts) else loss), metrics

    run.algo._losses = spoiled


FIXED_RATE = ("algo.target_kl=null", "algo.learning_rate=4e-4", "eval_every=0")


def test_diverged_learning_goes_back_to_the_last_checkpoint_with_half_the_rate(tmp_path, capsys):
    run = make(tmp_path, *FIXED_RATE)
    spoil_losses(run, [3 * 16 + 2])  # within iteration 4
    assert run.fit() == 0
    err = capsys.readouterr().err
    assert "rolled back to 00000003 with half the learning rate" in err
    assert [row["iteration"] for row in rows(run)] == list("123456")
    assert [float(row["train/actor/lr"]) for row in rows(run)] == [4e-4] * 3 + [2e-4] * 3
    whole = fit(tmp_path / "whole", *FIXED_RATE)
    assert untimed(run)[:3] == untimed(whole)[:3]
    # the collected data of iteration 4 are the same: generators and physics went back too
    assert untimed(run)[3]["rollout/rewards"] == untimed(whole)[3]["rollout/rewards"]
    assert run.checkpoints.newest()[1]["run"]["rate_halved"] is True


def test_faults_before_a_roll_back_are_not_counted_twice(tmp_path, monkeypatch):
    spoil_actions(monkeypatch, 1)  # six in ten iterations are just allowed, see above
    run = make(tmp_path, *QUIET)
    spoil_losses(run, [3 * 16 + 2])
    assert run.fit(quiet=True) == 0
    assert run.checkpoints.newest()[1]["run"]["faulty"] == [1 / 64] * 6


def test_learning_that_diverges_again_ends_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    run = make(tmp_path, *FIXED_RATE)
    spoil_losses(run, [3 * 16 + 2, 3 * 16 + 2 + MAX_SKIPPED + 20])
    with pytest.raises(FaultyRunError, match="again after the learning rate was halved"):
        run.fit(quiet=True)
    folder, state, messages = run.checkpoints.newest()
    assert (folder.name, messages) == ("00000004", [])
    assert all(torch.isfinite(t).all() for t in state["algo"]["policy"].values())


def test_weights_that_became_infinite_are_not_saved_and_end_the_run(tmp_path):
    run = make(tmp_path)
    weight = next(run.algo.policy.parameters())
    after_iteration(run, 2, lambda: weight.data.view(-1)[:1].fill_(math.inf))
    with pytest.raises(FaultyRunError, match=r"algo/policy/\S+ is not finite after iteration 2"):
        run.fit(quiet=True)
    assert run.checkpoints.newest()[0].name == "00000001"
