"""`scripts/run_pipeline.py`: from clouds to a trained policy, phase by phase."""

import importlib.util
import json
import pathlib
import shutil

import mujoco
import pytest

from penspin_style.meshes.folder import read_object
from tasks.real2sim.shipped import OBJECTS

ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run phases in an empty folder; return their exit code."""
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("run_pipeline", ROOT / "scripts/run_pipeline.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    script.POINTS = 3000
    return lambda line: script.main(line.split())


def _objects(tmp_path, *names):
    for name in names:
        shutil.copytree(OBJECTS / name, tmp_path / "outputs" / "reconstructed_objects" / name)


def test_phase_1_reconstructs_a_cloud_and_phase_2_sets_the_object_on_the_table(
    run, tmp_path, capsys
):
    shutil.copy(OBJECTS / "box" / "visual.obj", tmp_path / "crate.obj")
    assert run("1 crate.obj --mass 0.05 --licence mine") == 0
    crate = read_object(tmp_path / "outputs" / "reconstructed_objects" / "crate")
    assert (crate.name, crate.mass, crate.licence) == ("crate", 0.05, "mine")
    assert crate.volume == pytest.approx(6e-5, rel=1e-3)
    assert run("1 crate.obj") == 0  # in its place
    said = capsys.readouterr().out
    assert "neither --density nor --mass is given: 700 kg/m^3" in said
    assert "+ penspin real2sim convert --replace --out outputs/reconstructed_objects" in said
    assert run("2") == 0
    model = mujoco.MjModel.from_xml_path("outputs/scenes/pipeline/scene.xml")
    assert model.body("crate").mass[0] == pytest.approx(0.042, rel=1e-3)
    assert run("2") == 0  # in the place of the one before


def test_phase_2_takes_the_shipped_objects_where_nothing_is_reconstructed(run, capsys):
    assert run("2") == 0
    assert "holds no object: those that come with the package stand in" in capsys.readouterr().out
    assert mujoco.MjModel.from_xml_path("outputs/scenes/pipeline/scene.xml").nkey == 1


@pytest.mark.slow
def test_phases_without_files_take_clouds_of_shipped_objects(run, tmp_path, capsys):
    assert run("3B --hulls 4") == 0
    said = capsys.readouterr().out
    assert "no file is given: clouds of box, mug, t_block" in said
    model = mujoco.MjModel.from_xml_path("outputs/scenes/pipeline/scene.xml")
    for name in ("box", "mug", "t_block"):
        item = read_object(tmp_path / "outputs" / "reconstructed_objects" / name)
        assert item.volume == pytest.approx(read_object(OBJECTS / name).volume, rel=0.05)
        assert model.body(name).mass[0] == pytest.approx(700 * item.volume, rel=0.01)


def test_phase_3a_shows_the_expert(run, tmp_path):
    assert run("3a task.episode_length=20 task.objects=[box] sim.nthread=1") == 0
    folder = tmp_path / "outputs" / "demos" / "real2sim_pick_place"
    assert len(list(folder.glob("*.safetensors"))) == 1
    assert [strip.stat().st_size > 5000 for strip in folder.glob("*.png")] == [True]


def test_phases_4_and_5_say_what_has_to_be_delivered(run, capsys):
    assert run("4") == 0
    assert "a camera delivers its pose in the robot's base frame: FOLDER/camera.json" in (
        capsys.readouterr().out
    )
    assert run("5") == 0
    assert "a detector delivers where objects stand: FOLDER/poses.json" in capsys.readouterr().out


def test_phases_4_and_5_take_it_from_a_folder(run, tmp_path, capsys):
    _objects(tmp_path, "box", "bowl")
    folder = tmp_path / "seen"
    folder.mkdir()
    camera = {"format": 1, "position": [0.5, 0, 1], "quaternion": [0, 1, 0, 0]}
    (folder / "camera.json").write_text(json.dumps(camera))
    box = {"object": "box", "position": [0.0, 0.1, 0.984], "quaternion": [0, 1, 0, 0]}
    poses = {"format": 1, "frame": "camera", "poses": [box]}
    (folder / "poses.json").write_text(json.dumps(poses))
    assert run("4 seen") == 0
    assert "camera at (0.5, 0.0, 1.0) m" in capsys.readouterr().out
    assert run("5 seen") == 0
    model = mujoco.MjModel.from_xml_path("outputs/scenes/pipeline/scene.xml")
    assert model.body("box").pos == pytest.approx([0.5, -0.1, 0.015], abs=1e-3)
    assert model.nkey == 1 and "bowl" not in [model.body(i).name for i in range(model.nbody)]


def test_poses_that_cannot_be_used_end_a_phase_in_one_line(run, tmp_path, capsys):
    assert run("4 nowhere") == 3
    assert capsys.readouterr().err == (
        "run_pipeline.py: nowhere/camera.json: there is no such file\n"
    )
    _objects(tmp_path, "box")
    pose = {"object": "cup", "position": [0.5, 0, 0.1], "quaternion": [1, 0, 0, 0]}
    poses = {"format": 1, "frame": "base", "poses": [pose]}
    (tmp_path / "poses.json").write_text(json.dumps(poses))
    assert run("5 poses.json") == 3
    assert capsys.readouterr().err == (
        "penspin: there is a pose of 'cup', but no such object; there are box\n"
    )


def test_phase_6_checks_the_machine_and_measures_its_speed(run, capsys):
    assert run("6 --rounds 1 --steps 2 num_envs=2 task.objects=[box] sim.nthread=1") == 0
    said = capsys.readouterr().out
    assert "+ penspin doctor" in said and "+ penspin bench sim" in said
    assert "env_per_s" in said


def test_phase_7_trains_and_evaluates(run, capsys):
    small = "num_envs=2 total_samples=20 algo.horizon=10 eval_every=0 final_episodes=2 video=false"
    words = f"--episodes 2 {small} task.episode_length=10 loggers=[csv] sim.nthread=1"
    assert run(f"7 --algorithm ppo {words} learn_threads=1") == 0
    said = capsys.readouterr().out
    assert "+ scripts/train_real2sim_pickup.py --algorithm ppo" in said
    assert "Success rate: " in said and "2 episodes)" in said


def test_a_phase_that_there_is_not_is_refused(run, capsys):
    with pytest.raises(SystemExit) as caught:
        run("8")
    assert caught.value.code == 2
    assert "invalid choice: '8'" in capsys.readouterr().err
