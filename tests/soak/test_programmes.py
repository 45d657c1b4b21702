"""Each soak programme at a stated size: it keeps its targets, which its exit code says too."""

import json
import pathlib
import random
import signal
import subprocess
import sys
import types

import pytest

from tests.soak import measure_signals
from tests.soak.fuzz_server import ROOT

HERE = pathlib.Path(__file__).parent
STUDENT = ROOT / "outputs/pretrained/panda_lift_cube_vision/policy.onnx"
SIGNALS = 3


def run(name, *argv, absent=""):
    """Run a programme; return what it prints, or skip where what it measures is not installed."""
    command = [sys.executable, HERE / f"{name}.py", *map(str, argv)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if absent and done.returncode == 2 and absent in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.parametrize("path", sorted(HERE.glob("[!t]*.py")), ids=lambda path: path.stem)
def test_a_programme_says_how_it_is_called(path):
    help_ = run(path.stem, "--help")
    assert help_.startswith(f"usage: {path.name}")


def test_a_roll_out_that_gets_a_signal_leaves_its_robot_stopped(tmp_path):
    args = types.SimpleNamespace(policy=str(STUDENT))
    good, seconds = measure_signals.rollout(tmp_path, signal.SIGTERM, args, random.Random(0))
    assert good and seconds < 60.0


@pytest.mark.slow
def test_no_target_of_a_million_is_outside_a_limit():
    for found in json.loads(run("attack_guard", 1_000_000)).values():
        assert found["targets"] == 500_000 and not any(found["outside"].values())
        assert found["interventions"]


@pytest.mark.slow
@pytest.mark.clock
def test_a_driver_that_hangs_thirty_times_is_held_and_stopped_in_time():
    found = json.loads(run("attack_driver", "--count", 10, "--json"))
    assert [row["stop"]["count"] for row in found["calls"].values()] == [10] * 3
    assert all(row["followed"]["max"] == 0 for row in found["calls"].values())


@pytest.mark.slow
@pytest.mark.clock
@pytest.mark.timeout(1800)
def test_a_link_that_is_attacked_forty_times_never_moves_the_twin_wrongly():
    found = json.loads(run("attack_link", "--count", 10, "--json"))
    assert found["attacks"] == dict.fromkeys(("kill", "freeze", "delay", "drop"), 10)
    assert found["stale"] == found["missed"] == 0 and found["jump"]["max"] <= 1 + 1e-9
    assert [r["count"] for r in found["reconnect"].values()] == [10] * 4


@pytest.mark.slow
@pytest.mark.clock
@pytest.mark.timeout(1800)
def test_nineteen_hostile_clients_cost_a_good_one_no_answer():
    rows = list(map(json.loads, run("attack_server", "--seconds", 20, "--json").splitlines()))
    assert len(rows) == 19
    for row in rows:
        assert row["requests"] > 1000
        assert row["lost"] == row["wrong"] == row["exit_code_of_the_server"] == 0
        assert row["connections"] == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_frame_of_ten_thousand_mutated_ones_crashes_or_stalls_the_server():
    found = json.loads(run("fuzz_server", 10_000))
    assert found["frames"] == 10_000 and found["crashes"] == found["hangs"] == 0
    assert found["rss_growth_mb"] < 20 and len(found["outcomes"]) > 20


@pytest.mark.slow
def test_a_recorder_killed_three_hundred_times_loses_nothing():
    count = json.loads(run("kill_recorder", 300).splitlines()[-1])
    assert (count["kills"], count["lost"], count["half accepted"]) == (300, 0, 0)
    assert count["acknowledged"] > 300 and count["hidden files left"] == 0


@pytest.mark.slow
@pytest.mark.clock
def test_eight_clients_of_openpi_at_50_hz_get_every_answer():
    argv = ("--requests", 1000, "--clients", 8, "--seconds", 60)
    found = json.loads(run("load_server", *argv, absent="openpi-client"))
    assert found["one_client"]["requests"] == 1000 and found["clients"]["requests"] == 8 * 3000
    assert all(found[k]["lost"] == found[k]["wrong"] == 0 for k in ("one_client", "clients"))
    assert found["server"]["rss_drift_mb"] < 20


@pytest.mark.slow
@pytest.mark.clock
def test_a_hand_over_ros_gets_every_target_at_its_rate():
    said = run("measure_ros", "--seconds", 60, absent="install_ros.sh")
    found = json.loads(said[: said.rindex("}") + 1])
    assert found["targets_lost"] == found["states_lost"] == 0 and found["rate_error_percent"] < 1
    assert found["order_of_joints"] == "proven: 16 of 16"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_signal_saves_a_training_and_stops_a_robot():
    rows = run("measure_signals", STUDENT, "--count", SIGNALS).splitlines()[2:]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]
    assert [cell[:2] for cell in cells] == [
        [what, number.name]
        for what in ("training", "rollout")
        for number in measure_signals.interrupt.SIGNALS
    ]
    assert all(int(cell[3]) == int(cell[2]) == SIGNALS for cell in cells)
