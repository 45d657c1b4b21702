"""Trajectories in files: what is written is read again, and damage is named."""

import pytest
import torch

from penspin_style.data.trajectory import Trajectory, read_card, read_trajectory, write_trajectory
from penspin_style.storage import DamagedError


def made(steps=5):
    rng = torch.Generator().manual_seed(0)
    state = torch.zeros(steps + 1, 40, dtype=torch.float64)
    state[:, :3] = torch.rand(steps + 1, 3, generator=rng, dtype=torch.float64)
    state[:, 7] = 0.25
    kept = {
        "memory/target": torch.rand(steps + 1, 2, generator=rng),
        "memory/start": torch.full((steps + 1, 2), 0.5),
        "params/body_mass": torch.rand(4, generator=rng),
    }
    action = 2.0 * torch.rand(steps, 2, generator=rng) - 1.0
    return Trajectory(action, state, kept, {"task": "x", "score": {"turns": 1.5}})


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_trajectory_is_read_as_it_was_written(steps, tmp_path):
    before = made(steps)
    write_trajectory(tmp_path / "t.safetensors", before)
    after = read_trajectory(tmp_path / "t.safetensors")
    assert torch.equal(after.action, before.action)
    assert torch.equal(after.state, before.state)
    assert after.kept.keys() == before.kept.keys()
    assert all(torch.equal(after.kept[name], before.kept[name]) for name in after.kept)
    assert after.card == before.card == read_card(tmp_path / "t.safetensors")


def test_columns_that_never_change_are_written_once(tmp_path):
    write_trajectory(tmp_path / "t.safetensors", made(400))
    assert (tmp_path / "t.safetensors").stat().st_size < 401 * (3 * 8 + 2 * 4 + 2 * 4) + 2000


def test_a_snapshot_has_the_rows_that_are_asked_for():
    trajectory = made()
    snapshot = trajectory.snapshot(torch.tensor([4, 0]))
    assert torch.equal(snapshot["sim"], trajectory.state[[4, 0]])
    assert torch.equal(snapshot["memory/target"], trajectory.kept["memory/target"][[4, 0]])
    assert torch.equal(snapshot["params/body_mass"][1], trajectory.kept["params/body_mass"])


@pytest.mark.parametrize("damage", ["missing", "cut", "text", "empty"])
def test_a_damaged_file_is_named(damage, tmp_path):
    path = tmp_path / "t.safetensors"
    write_trajectory(path, made())
    whole = path.read_bytes()
    contents = {"cut": whole[:-9], "text": b"no tensors", "empty": b""}
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(contents[damage])
    with pytest.raises(DamagedError, match=r"t\.safetensors"):
        read_trajectory(path)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"action": torch.zeros(3, 2)}, "its shapes do not fit each other"),
        ({"state/columns": torch.tensor([0, 1, 99])}, "its shapes do not fit each other"),
        ({"memory/target": torch.zeros(4, 2)}, "its shapes do not fit each other"),
        ({"spy": torch.zeros(1)}, "it holds spy"),
        ({"state": None}, "it lacks state"),
    ],
)
def test_tensors_that_do_not_fit_each_other_are_refused(change, what, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "t.safetensors"
    write_trajectory(path, made())
    tensors = {k: v for k, v in {**load_file(path), **change}.items() if v is not None}
    save_file(tensors, path, {"card": "{}"})
    with pytest.raises(DamagedError, match=what):
        read_trajectory(path)
