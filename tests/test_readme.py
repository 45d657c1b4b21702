"""The marked blocks of the README and of the documentation run as they stand, scaled down."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from penspin_style.train.compose import CHOICES, FOLDER, compose_train

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r"<!-- runnable -->\n```(\w+)\n(.*?)```", re.DOTALL)
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCKS = [block for page in PAGES for block in BLOCK.findall(page.read_text())]
SCALE = (
    "num_envs=32 total_samples=1600 algo.horizon=10 eval_every=2 eval_episodes=8 "
    "final_episodes=8 video=false task.episode_length=30"
)


def scaled(language: str, text: str) -> str:
    """The block with its trainings and evaluations shrunk, never with a command left out."""
    if language != "bash":
        return text
    text = re.sub(
        r"(scripts/(?:quickstart|train_teacher|train_student_sim)\.sh[^\n]*)", rf"\1 {SCALE}", text
    )
    small = "total_samples=16000 final_episodes=8 video=false"
    text = re.sub(r"(penspin train task=balance .*)total_samples=\d+", rf"\1{small}", text)
    text = re.sub(r"(scripts/vis_teacher\.sh \w+)", r"\1 task.episode_length=40", text)
    text = re.sub(r"--episodes \d\d+", "--episodes 8", text)
    text = re.sub(r"penspin eval (?!.*--episodes)", "penspin eval --episodes 8 ", text)
    text = re.sub(r"--count \d+", "num_envs=64 --count 20", text)
    text = text.replace("penspin play", "penspin play --episodes 1 --size 96")
    return text.replace("penspin export", "penspin export --samples 500")


def test_the_pages_have_the_blocks_that_a_newcomer_runs():
    shell = "\n".join(text for language, text in BLOCKS if language == "bash")
    for command in (
        "quickstart.sh",
        "gen_grasp.sh",
        "train_teacher.sh",
        "train_student_sim.sh",
        "vis_teacher.sh",
        "eval",
        "--plot",
        "play",
        "export",
    ):
        assert command in shell


@pytest.mark.parametrize(("language", "text"), BLOCKS, ids=[t.split("\n")[0] for _, t in BLOCKS])
def test_a_runnable_block_runs(language, text, tmp_path):
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


PEN = (ROOT / "docs" / "pen_spin.md").read_text()


def test_every_key_that_the_pens_document_names_can_be_set():
    named = set(re.findall(r"(?<![\w.])(?:task|algo)(?:\.(?!env\b)\w+)+", PEN))
    assert len(named) > 40
    tasks = [OmegaConf.create(compose_train([f"task={t}"])[2]) for t in
             ("pen_spin", "pen_spin_student", "pen_grasp")]  # fmt: skip
    missing = {key for key in named if all(OmegaConf.select(cfg, key) is None for cfg in tasks)}
    assert not missing


def test_the_tasks_documents_name_every_change_and_no_other():
    text = PEN + "".join(page.read_text() for page in (ROOT / "docs" / "tasks").glob("*.md"))
    for group in CHOICES:
        there = {file.stem for file in (FOLDER / group).glob("*.yaml")}
        named = set(re.findall(rf"`{group}=(\w+)", text))
        assert named <= there
        assert all(f"`{name}`" in text for name in there - named)
