"""Where training's episodes begin, and what ends them for want of progress, on carts."""

import pytest
import torch

from penspin_style.config import StallConfig, StartsConfig
from penspin_style.env.env import Env
from penspin_style.env.start_bank import read_bank, write_bank
from penspin_style.env.starts import Archive, Stall
from penspin_style.storage import DamagedError
from tests.support.toy import Cart, Config
from tests.support.toy_env import column, differing, draw_actions, drive, place, step

CPU = torch.device("cpu")
ALL = torch.ones(2, dtype=torch.bool)


class Racer(Cart):
    """A cart whose progress is how far along the rail it stands; states to begin in at 0.7 m."""

    def progress(self, sim):
        return sim.data.qpos[:, 0].float()

    def start_bank(self, device):
        return torch.tensor([[0.7, 0.2, 0.0]])


def make(num_envs=4, *, kind=Racer, starts=None, stall=None, seed=1, **config):
    config = {"randomize": False, "episode_length": 10_000, **config}
    return Env(kind(Config(**config)), num_envs, seed=seed, starts=starts, stall=stall)


# Stalls.


def test_a_stall_is_so_many_steps_without_so_much_progress():
    stall = Stall(StallConfig(steps=3, least=0.1), 2, CPU)
    found = [
        stall.step(torch.tensor(row)).tolist()
        for row in ([0.1, 0.0], [0.15, 0.05], [0.19, 0.09], [0.19, 0.09], [0.3, 0.09])
    ]
    # the second makes less than 0.1 in all; the first three small steps too, after its first
    assert found == [[False] * 2, [False] * 2, [False, True], [True, True], [False, True]]
    stall.clear(torch.tensor([False, True]))
    assert stall.step(torch.zeros(2)).tolist() == [False, False]


@pytest.mark.parametrize("fails", [True, False])
def test_a_stall_fails_with_its_penalty_or_is_cut_off_with_its_value(fails):
    env = make(2, stall=StallConfig(steps=2, least=0.5, fails=fails, penalty=3.0))
    place(env, 0.25, 0.25)
    first, second = step(env, 0.0, 0.0)["next"], step(env, 0.0, 0.0)["next"]
    assert not first["done"].any() and second["done"].all()
    assert column(second["terminated"]) == [fails, fails]
    assert column(second["truncated"]) == [not fails, not fails]
    lost = 3.0 if fails else 0.0
    assert column(second["reward"]) == pytest.approx([0.75 - lost] * 2)
    assert not step(env, 0.0, 0.0)["next", "done"].any()  # a new episode has its own time


def test_a_step_forward_puts_a_stall_off():
    env = make(1, stall=StallConfig(steps=3, least=0.05))
    place(env, 0.0)
    done = [step(env, 1.0)["next", "done"].item() for _ in range(60)]
    # full force soon makes nearly 5 cm in each step; the rail ends at 1.5 m
    assert done.index(True) > 25


# Archives.


def test_an_archive_keeps_the_newest_rows_that_the_mask_names():
    archive = Archive(3, 1, torch.zeros(1))
    for k in range(4):
        rows = torch.tensor([[10.0 * k], [10.0 * k + 1.0]])
        archive.add(torch.tensor([True, k == 0]), rows, torch.tensor([float(k), 9.0]))
    # 0, 1, 10, 20, 30: the oldest two are gone
    assert archive.count == 3
    assert sorted(archive.rows[:3, 0].tolist()) == [10.0, 20.0, 30.0]
    assert sorted(archive.progress[:3].tolist()) == [1.0, 2.0, 3.0]


def test_the_farthest_of_the_rivals_wins():
    archive = Archive(50, 1, torch.zeros(1))
    every = torch.ones(50, dtype=torch.bool)
    archive.add(every, torch.arange(50.0)[:, None], torch.arange(50.0))
    rng = torch.Generator().manual_seed(0)
    plain, keen = (
        archive.progress[archive.draw(4000, n, rng, farthest=True)].mean() for n in (1, 4)
    )
    # the mean of the largest of k draws from 0..49 is near 50 k / (k + 1) - 0.5
    assert plain == pytest.approx(24.5, abs=1.0) and keen == pytest.approx(39.5, abs=1.0)


def test_states_that_succeed_half_the_time_win_over_those_that_always_or_never_do():
    archive = Archive(3, 1, torch.zeros(1))
    archive.add(torch.ones(3, dtype=torch.bool), torch.arange(3.0)[:, None], torch.zeros(3))
    for k in range(20):
        won = torch.tensor([True, k % 2 == 0, False])
        archive.note(torch.arange(3), torch.ones(3, dtype=torch.bool), won)
    drawn = archive.draw(4000, 4, torch.Generator().manual_seed(0), farthest=False)
    # it wins wherever it is among the rivals: 1 - (2/3)^4
    assert (drawn == 1).float().mean() == pytest.approx(0.80, abs=0.03)


# In the environment.


def test_a_share_of_the_episodes_begins_in_the_bank_with_its_velocity():
    env = make(2000, starts=StartsConfig(bank=0.25))
    x, v = env.sim.data.qpos[:, 0], env.sim.data.qvel[:, 0]
    there = (x - 0.7).abs() < 1e-6
    assert there.float().mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(there, (v - 0.2).abs() < 1e-6)
    torch.testing.assert_close(
        env.current()["teacher"][there][:, 0], torch.full((int(there.sum()),), 0.7)
    )
    # the figures are those of the task's own initial states
    assert torch.equal(env.statistics.counted, ~there)


def test_states_that_went_on_are_begun_in_and_those_that_did_not_are_none():
    starts = StartsConfig(far=1.0, rate=1.0, decided=2, least=0.05, fewest=1, rivals=1)
    env = make(2, starts=starts, rail=1.0)
    place(env, 0.0, -0.5)
    env.starts.clock.zero_()
    for _ in range(5):
        step(env, 1.0, 0.0)
    far = env.starts.archives["far"]
    assert far.count > 0
    # the second has stood still
    position, velocity = far.rows[: int(far.count), 0], far.rows[: int(far.count), 1]
    assert (position > 0.0).all() and (position < 0.15).all() and (velocity > 0.0).all()
    for _ in range(40):
        td = step(env, 1.0, 0.0)
        if td["next", "done"][0]:
            break
    assert env.starts.kind[0] == 0
    begun = env.starts.origin[0]
    assert env.sim.data.qpos[0, 0].item() == pytest.approx(far.rows[begun, 0].item())
    assert env.starts.before[0] == far.progress[begun] > 0.0


def test_states_before_a_failure_are_kept_and_lie_within_the_window():
    starts = StartsConfig(falls=0.5, before_fall=[4, 12], fewest=1)
    env = make(64, starts=starts, rail=1.0)
    place(env, *([-0.9] * 64))
    for _ in range(60):
        step(env, *([1.0] * 64))
    falls = env.starts.archives["falls"]
    assert falls.count > 10
    x = falls.rows[: int(falls.count), 0]
    # at 1 m/s, 5 cm each step, and the rail ends at 1 m
    assert (x < 1.0 - 3 * 0.05 + 1e-3).all() and (x > 1.0 - 13 * 0.05).all()


def test_a_task_without_progress_or_bank_says_so():
    with pytest.raises(ValueError, match=r"Cart knows no progress: .*algo\.stall"):
        make(1, kind=Cart, stall=StallConfig(steps=5))

    class Poor(Racer):
        def start_bank(self, device):
            return None

    with pytest.raises(ValueError, match=r"starts\.bank=0\.5: Poor has no bank of states; use 0"):
        make(1, kind=Poor, starts=StartsConfig(bank=0.5))


def test_a_bank_from_a_folder_takes_the_place_of_the_tasks_own(tmp_path):
    write_bank(tmp_path / "bank", torch.tensor([[-0.4, 0.1, 0.0]]), {"origin": "a test"})
    starts = StartsConfig(bank=1.0, states=str(tmp_path / "bank"))
    env = make(3, starts=starts)
    assert column(env.world.sim.data.qpos) == pytest.approx([-0.4] * 3)
    assert column(env.world.sim.data.qvel) == pytest.approx([0.1] * 3)


def test_a_bank_that_is_damaged_or_another_tasks_is_refused_by_its_folder(tmp_path):
    folder = tmp_path / "bank"
    starts = StartsConfig(bank=1.0, states=str(folder))
    with pytest.raises(DamagedError, match="bank"):
        make(1, starts=starts)
    write_bank(folder, torch.zeros(5, 2), {})
    with pytest.raises(
        ValueError, match=r"starts\.states=.*bank: its rows have 2 .*not the 3 of R"
    ):
        make(1, starts=starts)
    with pytest.raises(FileExistsError):
        write_bank(folder, torch.zeros(5, 3), {})
    for i, bad in enumerate(
        (torch.zeros(0, 3), torch.zeros(3), torch.tensor([[float("nan")] * 3]))
    ):
        write_bank(tmp_path / f"bad{i}", bad, {})
        with pytest.raises(DamagedError, match=f"bad{i}"):
            read_bank(tmp_path / f"bad{i}")


def test_without_starts_nothing_is_drawn_for_them():
    plain = make(4, kind=Cart)
    racer = make(4)
    actions = draw_actions(plain, 30)
    assert not differing(drive(plain, actions), drive(racer, actions))


def test_an_environment_with_starts_and_stalls_continues_bit_for_bit():
    starts = StartsConfig(far=0.3, falls=0.3, bank=0.2, rate=0.5, decided=3, fewest=1)
    starts.before_fall[:] = [1, 60]
    stall = StallConfig(steps=9, least=0.02)
    env, other = (make(8, starts=starts, stall=stall, rail=1.0, seed=s) for s in (1, 2))
    drive(env, draw_actions(env, 60))
    other.load_state_dict({k: v.clone() for k, v in env.state_dict().items()})
    actions = draw_actions(env, 60, seed=5)
    assert not differing(drive(env, actions), drive(other, actions))
    assert env.starts.archives["far"].count > 0
    left, right = env.state_dict(), other.state_dict()
    assert [key for key in left if not torch.equal(left[key], right[key])] == []


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (StartsConfig, {"far": 0.8, "bank": 0.3}, r"algo.starts must be shares >= 0, at most 1"),
        (StartsConfig, {"rate": 0.0}, r"algo.starts.rate must be in \(0, 1\], got 0.0"),
        (StartsConfig, {"before_fall": [5, 2]}, r"algo.starts.before_fall must be \[fewest, most"),
        (StallConfig, {"least": 0.0}, r"algo.stall.least must be > 0, got 0.0"),
        (StallConfig, {"steps": -1}, r"algo.stall.steps must be >= 0, got -1"),
    ],
)
def test_invalid_numbers_are_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
