"""The comparison of what learns from demonstrations, scaled down to where it proves nothing."""

import json

import pytest

from penspin_style.__main__ import main as robot
from penspin_style.deploy.torch_policy import load_act
from penspin_style.nets.policy import load_policy
from real.serving.action_chunking import EnsembledPolicy, RecedingPolicy
from scripts import compare_imitation
from scripts.compare_imitation import main, policy_of

STUDENT = "outputs/pretrained/panda_lift_cube_vision"
TWIN = """
task: panda_lift_cube_vision
overrides: [task.episode_length=6]
features: [tcp_pos, tcp_vel, gripper, box_pos]
measured: [{feature: tcp_pos}, {feature: gripper, scale: 25.0}]
"""
SMALL = {
    "clone": ("algo.from_scratch=true", "algo.num_epochs=1"),
    "act": (
        *("algo.num_queries=4", "algo.hidden_dim=8", "algo.dim_feedforward=8"),
        *("algo.enc_layers=1", "algo.dec_layers=1", "algo.nheads=2", "algo.num_epochs=1"),
        "algo.eval_start_epoch=0",
    ),
    "diffusion": ("algo.hidden_dim=8", "algo.num_epochs=1", "algo.num_queries=4"),
}

pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_three_learn_from_the_same_states_and_end_in_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(compare_imitation.ROOT)
    monkeypatch.setattr(compare_imitation, "METHODS", SMALL)
    twin, demos, out = tmp_path / "twin.yaml", tmp_path / "demos", tmp_path / "out"
    twin.write_text(TWIN)
    assert robot_records(twin, demos) == 0
    argv = [STUDENT, str(demos), f"--twin={twin}", f"--out={out}", "--seeds=1", "--episodes=2"]
    argv += ["--inputs=state", "--demonstrations=3"]
    assert main(argv) == 0
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["name"] for r in rows] == [f"{name}-state-3-0" for name in SMALL]
    assert capsys.readouterr().out.count(" | 0.0% | 0.0% to 65.8% | 0.0% | ") == 3
    folders = {n: next(out.glob(f"*/{n}-state-3-0")) for n in SMALL}
    _, card = load_policy(folders["clone"] / "policy")
    assert [f.name for i in card.inputs for f in i.features] == [
        *("tcp_pos", "tcp_vel", "gripper", "box_pos")
    ]
    learned = {**card.score["episodes"], **card.score["validation_episodes"]}
    assert sorted(learned) == sorted(path.name for path in demos.glob("*.h5"))[:3]
    assert load_act(folders["act"]).horizon == 4
    diffusion = policy_of("diffusion", folders["diffusion"])
    assert isinstance(diffusion, RecedingPolicy) and diffusion.steps == 2
    assert isinstance(policy_of("act", folders["act"]), EnsembledPolicy)
    assert main(argv) == 0  # there is nothing left to do
    assert len((out / "results.jsonl").read_text().splitlines()) == 3
    # what cannot be compared
    for wrong, said in (
        (["--demonstrations=9"], f"--demonstrations 9: {demos} holds 4 episodes"),
        (["--set", "algo.num_epochs=3"], "is there, of {'student': "),
        ([f"--out={tmp_path / 'other'}", "--twin=panda"], "--inputs state: the twin measures no"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main([*argv, *wrong])
        assert said in capsys.readouterr().err


def robot_records(twin, demos):
    argv = ["teleop", str(twin), "--device=scripted", "--episodes=4", f"--out={demos}"]
    return robot([*argv, "--success=steps>=6"])
