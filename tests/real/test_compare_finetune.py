"""The comparison before and after fine-tuning, scaled down to where it proves nothing."""

import json

import numpy as np
import pytest

from penspin_style.data.dataset import load
from penspin_style.data.episodes.episode import Episode, episodes
from penspin_style.nets.policy import load_policy
from real.act import load_act
from real.replay.collect import smoothed
from scripts import compare_finetune
from scripts.compare_finetune import chosen, main, padded, pairs

PRETRAINED = "outputs/pretrained"
TWIN = """
task: panda_lift_cube_vision
overrides: [task.visual_randomization=false, task.episode_length=6]
measured: [{feature: tcp_pos}, {feature: gripper, scale: 25.0}]
perturb: [{field: body_mass, names: box, value: 0.3, operation: abs}]
"""
ACT = "num_queries=3,hidden_dim=8,dim_feedforward=8,enc_layers=1,dec_layers=1,nheads=2"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_comparison_goes_on_where_it_was_and_ends_in_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(compare_finetune.ROOT)
    twin, out = tmp_path / "twin.yaml", tmp_path / "out"
    twin.write_text(TWIN)
    policies = (f"{PRETRAINED}/panda_lift_cube", f"{PRETRAINED}/panda_lift_cube_vision")
    argv = [*policies, f"--twin={twin}", f"--out={out}", "--rule=steps>=6", "--episodes=2"]
    argv += ["--replays=4", "--pool=3", "--trajectories", "2", "--seeds=1", "--speed=0.5"]
    argv += ["--finetune", "num_epochs=1", f"--act={ACT},num_epochs=1,eval_start_epoch=0"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(r["name"], r["successes"], r["episodes"]) for r in rows] == [
        *(("home", 2, 2), ("before", 2, 2), ("replay", 4, 4)),
        *((f"{method}-2-0", 2, 2) for method in ("finetuned", "scratch", "act")),
    ]
    table = capsys.readouterr().out
    assert "| student, fine-tuned | 2 | 100.0% | 34.2% to 100.0% | 100.0% |" in table
    # what was repeated on the twin is what was done in the world of the training, half as fast
    found = [Episode.open(path) for path in episodes(out / "replays")]
    assert len(found) == 3 and {e.header.source for e in found} == {"twin"}
    assert all(np.abs(e["action"][:, :3]).max() <= 0.5 + 1e-4 for e in found)
    assert all(e.success and np.allclose(e["sent"], e["target"], atol=1e-5) for e in found)
    _, card = load_policy(out / "policies" / "finetuned-2-0" / "policy")
    learned = {**card.score["episodes"], **card.score["validation_episodes"]}
    assert len(learned) == 2 and set(learned) < {e.path.name for e in found}
    assert load_act(out / "policies" / "act-2-0").horizon == 3
    # a kill before the last line: that alone is done again, with the policy that is there
    lines = (out / "results.jsonl").read_text().splitlines(keepends=True)
    (out / "results.jsonl").write_text("".join(lines[:-1]))
    before = (out / "policies" / "act-2-0" / "policy" / "manifest.json").stat().st_mtime_ns
    assert main(argv) == 0
    again = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["name"] for r in again] == [r["name"] for r in rows]
    after = (out / "policies" / "act-2-0" / "policy" / "manifest.json").stat().st_mtime_ns
    assert after == before
    with pytest.raises(ValueError, match="only 3 replays succeeded, 9 are wanted"):
        chosen(load(out / "replays", card), 9, 0)


def test_targets_are_averaged_around_each_step_and_only_where_asked():
    sent = np.array([[0.0, 1.0], [3.0, 1.0], [0.0, 5.0], [6.0, 1.0]])
    out = smoothed(sent, 3, [0])
    assert out[:, 0].tolist() == [1.0, 1.0, 3.0, 4.0]
    assert (out[:, 1] == sent[:, 1]).all()
    assert np.array_equal(smoothed(sent, 1, [0, 1]), sent)
    assert padded(sent, 6)[:, 0].tolist() == [0.0, 3.0, 0.0, 6.0, 6.0, 6.0]


def test_settings_are_read_as_numbers_and_words():
    assert pairs("lr=3e-4,views=2,loss=l2") == {"lr": 3e-4, "views": 2, "loss": "l2"}
    assert pairs("") == {}
