"""MuJoCo Warp, on its CPU device, against MuJoCo C: 32 held grasps for a second.

Same models, states, targets, noise and pushes. Contact is chaotic, so tolerances are quantiles over
the environments in which the pen is still held: five times the largest of four seeds.
`scripts/compare_engines.py` makes the comparison that says how many pens drop.
"""

import pytest
import torch

from scripts import compare_engines as script
from scripts.compare_engines import compare

CPU = torch.device("cpu")
# control step -> largest difference of half and of nine tenths of the environments
PEN = {1: (7e-7, 6e-5), 10: (2e-5, 8e-4), 20: (5e-5, 1.3e-3)}  # m
JOINTS = {1: (1.3e-6, 8e-5), 10: (3.3e-4, 4.5e-3), 20: (2.6e-4, 3.8e-3)}  # rad


@pytest.fixture(scope="module")
def found():
    """Warp; MuJoCo C itself; MuJoCo C with joints that begin a little elsewhere."""
    others = [("warp", CPU, 0.0), ("mujoco", CPU, 0.0), ("mujoco", CPU, script.NUDGE)]
    return compare(32, 20, others, scales=[0.28], seed=2)


def test_mujoco_driven_twice_by_the_same_inputs_agrees_with_itself_to_the_bit(found):
    same = found[1]
    for values in (same.pen, same.joints):
        assert not values.nan_to_num().any() and (values[0] == 0).any()
    assert torch.equal(same.terminated, same.terminated_exact)


def test_warp_keeps_pen_and_joints_where_mujoco_does(found):
    warp = found[0]
    for values, limits in ((warp.pen, PEN), (warp.joints, JOINTS)):
        for step, limit in limits.items():
            measured = torch.nanquantile(values[step - 1], torch.tensor([0.5, 0.9]).double())
            assert (measured <= torch.tensor(limit)).all(), (step, measured)
            assert measured[0] > 0  # they are two engines
    assert warp.faults == 0


def test_as_many_pens_drop_in_warp_as_in_mujoco(found):
    warp = found[0]
    assert script.agree(warp)
    assert (warp.terminated != warp.terminated_exact).sum() <= 4
    assert 4 <= warp.terminated_exact.sum() <= 28  # or nothing would have been compared


def test_the_table_says_what_was_measured(found):
    text = script.table(["warp", "itself", "moved"], found)
    row = next(line for line in text.splitlines() if line.startswith("warp: pen, mm"))
    median = float(row.split()[-3])
    assert median == pytest.approx(1e3 * float(found[0].pen[0].nanquantile(0.5)), rel=0.05)
    dropped = int(found[0].terminated.sum())
    assert f"{dropped} of 32: {100 * dropped / 32:.1f} %, 95 % interval" in text


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--envs", "0"], "error: --envs and --steps must be at least 1, got 0 and 100"),
        (["--scale", "0.5"], "error: there is no cache of grasps"),
        (["--device", "cuda:0"], "error: device=cuda:0: torch finds no GPU here"),
    ],
)
def test_bad_arguments_end_with_code_2(capsys, monkeypatch, argv, says):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert script.main(argv) == 2
    assert says in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        script.main(["--sparkle"])


def test_engines_that_disagree_end_with_code_1(capsys, monkeypatch, found):
    all_terminated = torch.ones(32, dtype=torch.bool)
    off = script.Comparison(found[0].pen, found[0].joints, all_terminated, ~all_terminated, 0)
    monkeypatch.setattr(script, "compare", lambda *_, **__: [off, off])
    assert script.main([]) == 1
    assert "dropped, warp on cpu            32 of 32: 100.0 %" in capsys.readouterr().out
