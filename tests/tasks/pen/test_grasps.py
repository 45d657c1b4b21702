"""The published grasps, the caches, and the script that makes them."""

import json
import os
import pathlib
import subprocess
import sys

import mujoco
import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from penspin_style import storage
from scripts import gen_grasp
from tasks.pen import grasps
from tasks.robots.allegro import description
from tasks.robots.allegro import model as allegro
from tests.support.pen_world import matrix

ROOT = pathlib.Path(__file__).parents[3]
CARD = {
    *("scale", "grasps", "columns", "band", "jitter", "seed"),
    *("tried", "held_once", "checks", "accepted", "accepted_per_second"),
    *("began", "broken_rules", "held_again", "held_again_of"),
}
FINGERS = {"index": 0, "middle": 1, "ring": 2, "thumb": 3}


# The published six.


def test_the_fingers_that_a_grasp_is_named_after_reach_the_pen():
    """On a pen of 22.8 mm their tips are 0 to 4 mm away, in the right order of joints alone."""
    spec = allegro.scene()
    allegro.add_pen(spec, 0.0114, 0.068, 0.015)
    model = spec.compile()
    data = mujoco.MjData(model)
    pen = model.geom("pen").id
    rows = grasps.canonical().double().numpy()
    assert rows.shape == (6, 23)
    for row, name in zip(rows, grasps.CANONICAL_NAMES, strict=True):
        data.qpos[:] = row
        mujoco.mj_forward(model, data)
        one, other = ([FINGERS[f] for f in half.split(" + ")] for half in name.split(" | "))
        tips = [model.geom(f"hand_{tip}").id for tip in allegro.TIPS]
        gaps = np.array([mujoco.mj_geomDistance(model, data, t, pen, 0.2, None) for t in tips])
        assert (gaps[one + other] > -5e-4).all() and (gaps[one + other] < 4.5e-3).all(), name
        # the two groups stand on opposite sides of the pen; one finger may hold it from below
        left = np.cross([0, 0, 1], matrix(row[19:])[:, 2])
        where = np.array([np.dot(data.site(tip).xpos - row[16:19], left) for tip in allegro.TIPS])
        sides = [{*np.sign(where[f][np.abs(where[f]) > 0.01])} for f in (one, other)]
        assert sides in ([{1.0}, {-1.0}], [{-1.0}, {1.0}]), name


def test_the_published_grasps_are_of_a_lying_pen_within_the_limits_of_the_joints():
    rows = grasps.canonical()
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    assert ((rows[:, :16] >= low) & (rows[:, :16] <= high)).all()
    np.testing.assert_allclose(rows[:, 16:19], [[-0.01, -0.01, 0.62]] * 6, atol=1e-7)
    np.testing.assert_allclose(rows[:, 19:].norm(dim=1), 1.0, atol=1e-4)
    assert np.abs(matrix(rows[:, 19:].numpy())[:, 2, 2]).max() < 1e-4


# Caches.


@pytest.mark.parametrize("scale", [0.28, 0.29])
def test_a_shipped_cache_is_what_its_card_says(scale):
    folder = grasps.SHIPPED / grasps.folder_name(scale)
    rows = grasps.load_one(folder)
    card = json.loads((folder / "card.json").read_text())
    assert set(card) == CARD
    assert card["scale"] == scale
    assert card["grasps"] == len(rows) == 3000
    assert sum(card["began"].values()) >= 3000
    assert set(card["began"]) <= set(grasps.CANONICAL_NAMES)
    low, high = torch.tensor(description.LOWER), torch.tensor(description.UPPER)
    assert ((rows[:, :16] > low - 0.01) & (rows[:, :16] < high + 0.01)).all()
    near = torch.cdist(rows[:, :16], grasps.canonical()[:, :16]).amin(dim=1)
    assert near.max() < 0.5  # rad, all joints together: nothing has wandered off
    assert torch.allclose(rows[:, 19:].norm(dim=1), torch.ones(3000), atol=1e-5)
    half = 0.04 * scale * 6.5  # of the longest pen: both ends are in the band even so
    rise = half * torch.from_numpy(matrix(rows[:, 19:].numpy())[:, 2, 2]).abs()
    assert (rows[:, 18] > 0.6).all() and (rows[:, 18] + rise < 0.65).all()
    assert len(rows.unique(dim=0)) == 3000


def test_the_other_sides_of_a_pen_lie_where_the_pen_lay():
    rows = grasps.load("", [0.28])
    more = grasps.load("", [0.28], sides=3)
    assert torch.equal(more[:, :3000], rows)
    for other in more[:, 3000:].split(3000, dim=1):
        assert torch.equal(other[..., :19], rows[..., :19])
        was, now = (matrix(x[0, :, 19:].double().numpy()) for x in (rows, other))
        turned = was.transpose(0, 2, 1) @ now  # in the pen's own frame
        along = turned[:, 2, 2]
        assert np.abs(np.abs(along) - 1.0).max() < 1e-5
        assert 0.45 < (along < 0).mean() < 0.55
        roll = np.arctan2(turned[:, 1, 0], turned[:, 0, 0])
        counts = np.histogram(roll, bins=8, range=(-np.pi, np.pi))[0]
        assert counts.min() > 300 and counts.max() < 450
    with pytest.raises(ValueError, match="sides must be at least 1, got 0"):
        grasps.load("", [0.28], sides=0)


def test_caches_of_several_scales_are_cut_to_the_shortest(tmp_path):
    rows = grasps.load("", [0.28])[0]
    for scale, count in ((0.1, 5), (0.25, 3)):
        grasps.save(rows[:count], tmp_path / grasps.folder_name(scale), {"scale": scale})
    both = grasps.load(str(tmp_path), [0.25, 0.1])
    assert both.shape == (2, 3, 23)
    assert torch.equal(both[0], rows[:3]) and torch.equal(both[1], rows[:3])
    assert grasps.load(str(tmp_path), [0.1]).shape == (1, 5, 23)
    assert json.loads((tmp_path / "s0.1" / "card.json").read_text()) == {"scale": 0.1}
    with pytest.raises(FileExistsError, match=r"s0\.1 exists already"):
        grasps.save(rows, tmp_path / "s0.1", {})


def test_a_missing_cache_says_which_there_are_and_how_to_make_it(tmp_path):
    with pytest.raises(ValueError, match=r"s0\.3 \(there: s0\.28, s0\.29\); .*\.sh GPU 0\.3"):
        grasps.load("", [0.28, 0.3])
    with pytest.raises(ValueError, match=r"\(there: none\)"):
        grasps.load(str(tmp_path), [0.28])
    with pytest.raises(ValueError, match=r"\(there: none\)"):
        grasps.load(str(tmp_path / "nowhere"), [0.28])


def test_a_damaged_cache_is_refused(tmp_path):
    folder = tmp_path / "s0.28"
    grasps.save(grasps.canonical(), folder, {})
    file = folder / "grasps.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"grasps\.safetensors does not match its checksum"):
        grasps.load(str(tmp_path), [0.28])
    file.unlink()
    with pytest.raises(ValueError, match=r"grasps\.safetensors is missing"):
        grasps.load(str(tmp_path), [0.28])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"grasps": torch.zeros(4, 22)}, r"a cache holds `grasps` \(n, 23\)"),
        ({"grasps": torch.zeros(0, 23)}, r"a cache holds `grasps` \(n, 23\)"),
        ({"poses": torch.zeros(4, 23)}, r"a cache holds `grasps` \(n, 23\)"),
        ({"grasps": torch.tensor([[0.0] * 23, [float("nan")] * 23])}, "row 1 is not finite"),
    ],
)
def test_a_cache_of_something_else_is_refused(tmp_path, content, says):
    with storage.publish(tmp_path / "s0.28", {}) as stage:
        (stage / "grasps.safetensors").write_bytes(save_tensors(content))
    with pytest.raises(ValueError, match=says):
        grasps.load(str(tmp_path), [0.28])


# The script.


def run_script(*argv):
    env = {**os.environ, "PENSPIN_SKIP_INSTALL": "1"}
    env["PATH"] = f"{pathlib.Path(sys.executable).parent}:{env['PATH']}"
    return subprocess.run(
        ["bash", "scripts/gen_grasp.sh", *argv], cwd=ROOT, env=env, capture_output=True, text=True
    )


def test_the_script_makes_a_cache_a_card_and_a_plot(tmp_path):
    argv = (
        "cpu",
        "0.3",
        "--count",
        "3",
        "num_envs=32",
        "task.episode_length=10",
        "seed=4",
        "--out",
        str(tmp_path),
    )
    done = run_script(*argv)
    assert done.returncode == 0, done.stderr
    rows = grasps.load(str(tmp_path), [0.3])
    assert rows.shape == (1, 3, 23)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["s0.3", "s0.3.png"]
    assert (tmp_path / "s0.3.png").read_bytes()[1:4] == b"PNG"
    card = json.loads((tmp_path / "s0.3" / "card.json").read_text())
    assert set(card) == CARD
    assert (card["scale"], card["grasps"], card["seed"], card["checks"]) == (0.3, 3, 4, 3)
    assert 3 / card["tried"] <= card["accepted"] <= card["held_once"] < 0.9
    assert sum(card["began"].values()) == round(card["held_once"] * card["tried"])
    assert f"cache  {tmp_path}/s0.3\n" in done.stdout
    assert "Traceback" not in done.stderr


def test_without_a_scale_the_script_says_how_it_is_called():
    done = run_script("cpu")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: scripts/gen_grasp.sh GPU SCALE")


@pytest.fixture
def search(one_thread, tmp_path, capsys):
    """Call the script within this process; its exit code and what it said of the error."""

    def call(*argv):
        try:
            code = gen_grasp.main([*argv, "--out", str(tmp_path)])
        except SystemExit as stop:  # argparse's own
            code = stop.code
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("cpu", "wide"), "invalid float value: 'wide'"),
        (("cpu", "-0.2"), r"error: task.scales, less task.scale_jitter >= 0, must be > 0"),
        (("cpu", "nan"), "error: task.scales must be finite"),
        (("cpu", "0.28", "--count", "0"), "error: --count must be at least 1, got 0"),
        (("cpu", "0.28", "task.band=middle"), "error: task.band must be one of ['high', 'low']"),
        (("cpu", "0.28", "task.bend=low"), "unknown key 'task.bend'; did you mean task.band?"),
        (("cpu", "0.28", "--bogus"), "error: '--bogus' is not an override"),
        (("left", "0.28"), "error: device must be auto, cpu, cuda or cuda:N, got cuda:left"),
        (("cpu", "0.28", "num_envs=0"), "error: num_envs must be >= 1"),
    ],
)
def test_bad_arguments_end_with_code_2_and_one_line(search, argv, says):
    code, error = search(*argv)
    assert code == 2
    assert says in error
    assert "Traceback" not in error


def test_a_search_does_not_begin_where_it_could_not_be_stored(search, tmp_path, monkeypatch):
    def collect(*_):
        raise AssertionError("has begun")

    monkeypatch.setattr(gen_grasp, "collect", collect)
    (tmp_path / "s0.28").mkdir()
    code, error = search("cpu", "0.28")
    assert (code, "exists already: move it away" in error) == (2, True)
    (tmp_path / "file").touch()
    code = gen_grasp.main(["cpu", "0.29", "--out", str(tmp_path / "file")])
    assert code == 2


def test_a_search_in_vain_ends(search, monkeypatch):
    """Held once, but never in a replay."""

    def collect(env, task, count, found):
        found.tried, found.kept = found.tried + 9000, found.kept + 900
        return torch.zeros(900, 23)

    monkeypatch.setattr(gen_grasp, "collect", collect)
    monkeypatch.setattr(gen_grasp, "held", lambda _env, _task, rows, _rng: rows[:, 0] > 0)
    code, error = search("cpu", "0.28", "num_envs=2")
    assert code == 2
    assert "error: none of 2700 grasps that held the pen did so again" in error


def test_an_interrupted_search_says_so(search, monkeypatch, tmp_path):
    def collect(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(gen_grasp, "collect", collect)
    assert search("cpu", "0.28", "num_envs=2") == (130, "stopped; nothing was stored\n")
    assert not list(tmp_path.iterdir())
