"""What the documents say about Gymnasium, in processes of their own."""

import inspect
import pathlib
import re
import subprocess
import sys
import textwrap

import tasks
from penspin_style.env import gym_env

ROOT = pathlib.Path(__file__).parents[2]
MAKES = re.compile(r"""\bmake(?:_vec)?\(\s*["']([^"']+)""")


def run(code, path):
    """Run code as the file of a process of its own; return what it prints."""
    path.write_text(textwrap.dedent(code))
    command = [sys.executable, "-W", "error", str(path)]
    env = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=path.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_id_that_the_documents_make_is_one_that_a_new_process_knows():
    texts = [inspect.getdoc(gym_env), inspect.getdoc(tasks)]
    texts += [path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    made = [name for text in texts for name in MAKES.findall(text)]
    assert len(made) >= 5
    known = {f"tasks:{tasks.gymnasium_id(name)}" for name in tasks.task_names()}
    assert set(made) <= known


def test_the_lines_of_the_docstring_run_in_a_new_process(tmp_path):
    doc = inspect.getdoc(gym_env)
    lines = [line.strip() for line in doc.splitlines() if line.startswith("    gymnasium.")]
    made = "\n".join(f"print(type({line}.unwrapped).__name__)" for line in lines)
    said = run(f"import gymnasium\n{made}\n", tmp_path / "script.py")
    assert said.split() == ["GymEnv", "GymVectorEnv"]


def test_the_plain_id_is_known_once_tasks_is_imported_and_costs_no_torch(tmp_path):
    code = """
        import sys, tasks, gymnasium
        gymnasium.register_envs(tasks)
        print(gymnasium.spec("penspin_style/PenSpin-v0").kwargs["task"])
        print(sorted({"torch", "mujoco", "warp"} & set(sys.modules)))
    """
    assert run(code, tmp_path / "script.py").splitlines() == ["pen_spin", "[]"]


def test_the_library_alone_imports_no_gymnasium(tmp_path):
    code = "import sys, penspin_style, real.robot; print('gymnasium' in sys.modules)"
    assert run(code, tmp_path / "script.py").strip() == "False"


def test_worker_processes_that_inherit_nothing_know_the_id_too(tmp_path):
    code = """
        import multiprocessing, gymnasium

        def size(name):
            return gymnasium.make(name).reset(seed=0)[0].shape

        if __name__ == "__main__":
            with multiprocessing.get_context("forkserver").Pool(1) as pool:
                print(pool.apply(size, ("tasks:penspin_style/PandaLiftCube-v0",)))
    """
    assert run(code, tmp_path / "script.py").strip() == "(22,)"
