"""The whole way to the robot and back, in one script, scaled down."""

import os
import pathlib
import re
import subprocess
import sys

from penspin_style.data.episodes.episode import Episode, episodes
from penspin_style.deploy.bundle import Bundle

ROOT = pathlib.Path(__file__).parents[2]
PATH = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"


def chain(*argv, timeout=600):
    return subprocess.run(
        ["bash", ROOT / "scripts/real_chain.sh", *map(str, argv)],
        env={**os.environ, "PENSPIN_SKIP_INSTALL": "1", "PATH": PATH, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def test_the_chain_runs_unattended_from_a_teacher_to_closed_loop(tmp_path):
    out = tmp_path / "chain"
    done = chain("--small", out)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    steps = re.findall(r"^== \[(\d)/8\]", done.stdout, re.M)
    assert steps == list("12345678")
    made, recorded = episodes(out / "trajectories"), episodes(out / "episodes")
    assert (len(made), len(recorded)) == (6, 3)
    names = {path.name for path in made}
    for path in recorded:
        episode = Episode.open(path)
        assert episode.success and episode.header.source == "twin"
        assert episode.header.facts["trajectory"] in names
    tuned, before = (Bundle.load(out / f"{name}.onnx") for name in ("policy", "before"))
    assert tuned.card.weights_sha256 != before.card.weights_sha256  # it has learnt something
    assert [i.name for i in tuned.card.inputs] == [i.name for i in before.card.inputs]
    (closed,) = episodes(out / "closed_loop")
    assert Episode.open(closed).header.card == tuned.card
    again = chain("--small", out)
    assert again.returncode == 2 and "exists already" in again.stderr


def test_arguments_that_it_does_not_know_start_nothing():
    done = chain("--smal", timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("usage: scripts/real_chain.sh")
