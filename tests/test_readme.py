"""The README's marked blocks run as they stand, scaled down."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BLOCK = re.compile(r"<!-- runnable -->\n```(\w+)\n(.*?)```", re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
SCALE = (
    "num_envs=32 total_samples=1600 algo.horizon=10 eval_every=2 eval_episodes=8 "
    "final_episodes=8 video=false"
)


def scaled(language: str, text: str) -> str:
    """The block with its trainings and judgements shrunk, never with a command left out."""
    if language != "bash":
        return text
    text = re.sub(
        r"(scripts/(?:quickstart|train_teacher|train_student_sim)\.sh[^\n]*)", rf"\1 {SCALE}", text
    )
    text = re.sub(r"--episodes \d+", "--episodes 8", text)
    return text.replace("penspin export", "penspin export --samples 500")


def test_the_readme_has_the_blocks_that_a_newcomer_runs():
    shell = "\n".join(text for language, text in BLOCKS if language == "bash")
    for command in (
        "quickstart.sh",
        "train_teacher.sh",
        "train_student_sim.sh",
        "vis_teacher.sh",
        "eval",
        "play",
        "export",
    ):
        assert command in shell


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[t.split("\n")[0] for _, t in BLOCKS])
def test_a_runnable_block_of_the_readme_runs(language, text, tmp_path):
    for name in ("scripts", "cfg", "outputs/pretrained", "tasks", "penspin_style"):
        link = tmp_path / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(ROOT / name)
    command = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}[
        language
    ]
    done = subprocess.run(
        [*command, scaled(language, text)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PENSPIN_SKIP_INSTALL": "1",
            "PENSPIN_EPISODES": "8",
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    if "quickstart" in text:
        assert "success, student, ONNX" in done.stdout
        made = (tmp_path / "outputs" / "panda_lift_cube_vision").glob("quickstart-*/policy.onnx")
        assert len(list(made)) == 1
