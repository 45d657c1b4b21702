"""`penspin hub`: what is sent and fetched, checked, through folders and the real client offline."""

import pathlib
import shutil

import pytest

from penspin_style import hub
from penspin_style.__main__ import main
from penspin_style.deploy.bundle import Bundle
from penspin_style.hub import HubError, pull, push
from penspin_style.nets.policy import load_policy
from tests.support.episodes import columns, record, vector_card

huggingface_hub = pytest.importorskip("huggingface_hub")

LIFT = pathlib.Path(__file__).parents[1] / "outputs/pretrained/panda_lift_cube"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The client, told to reach nothing, and the folder of its cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def cached(cache, repo, source, kind="models"):
    """Lay a repository out as the client does when it has fetched it."""
    folder = cache / f"{kind}--{repo.replace('/', '--')}"
    shutil.copytree(source, folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


def test_a_policy_comes_back_as_it_was_sent(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["hub", "push", str(LIFT), "./repo", "--licence", "mit", "--json"]) == 0
    assert main(["hub", "pull", "./repo"]) == 0
    out = tmp_path / "outputs/hub/repo"
    for name in ("policy.onnx", "config.yaml", "policy/policy.safetensors", "policy/manifest.json"):
        assert (out / name).read_bytes() == (LIFT / name).read_bytes()
    assert load_policy(out / "policy")[1] == load_policy(LIFT / "policy")[1]
    assert "model in outputs/hub/repo: 7 files" in capsys.readouterr().out


def test_its_readme_is_a_card_of_the_hub(tmp_path):
    push(LIFT, f"{tmp_path}/repo", licence="apache-2.0")
    card = huggingface_hub.ModelCard.load(tmp_path / "repo/README.md")
    assert card.data.license == "apache-2.0" and card.data.library_name == "penspin_style"
    [result] = card.data.eval_results
    assert (result.dataset_type, result.metric_type) == ("panda_lift_cube", "success_rate")
    assert result.metric_value == load_policy(LIFT / "policy")[1].score["success_rate"]
    assert "| `tcp_pos` | 3 | m |" in card.text and "| `gripper` | 1 | m |" in card.text


def test_an_exported_file_alone_is_a_policy_too(tmp_path):
    moved = push(LIFT / "policy.onnx", f"{tmp_path}/repo")
    assert moved.files == ("README.md", "policy.onnx")
    pull(f"{tmp_path}/repo", tmp_path / "back")
    assert Bundle.load(tmp_path / "back/policy.onnx").card.task == "panda_lift_cube"


def test_episodes_are_a_data_set(tmp_path):
    for seed in (1, 2):
        record(tmp_path / "demos", vector_card(), columns(vector_card(), seed=seed))
    assert push(tmp_path / "demos", f"{tmp_path}/repo").kind == "dataset"
    card = huggingface_hub.DatasetCard.load(tmp_path / "repo/README.md")
    assert card.data.task_categories == ["robotics"] and "2 files of episodes" in card.text
    moved = pull(f"{tmp_path}/repo", tmp_path / "back", kind="dataset")
    assert len(moved.files) == 3
    for file in (tmp_path / "demos").glob("*.h5"):
        assert (tmp_path / "back" / file.name).read_bytes() == file.read_bytes()


def test_what_cannot_be_trusted_is_neither_sent_nor_kept(tmp_path):
    shutil.copytree(LIFT, tmp_path / "run")
    weights = tmp_path / "run/policy/policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    with pytest.raises(ValueError, match=r"policy\.safetensors"):
        push(tmp_path / "run", f"{tmp_path}/repo")
    with pytest.raises(HubError, match=r"run holds no model that can be trusted: policy/policy"):
        pull(f"{tmp_path}/run", tmp_path / "out")
    assert not (tmp_path / "repo").exists() and not (tmp_path / "out").exists()
    shutil.copyfile(LIFT.parent / "panda_pick_cube/policy.onnx", tmp_path / "run/policy.onnx")
    shutil.copytree(LIFT / "policy", tmp_path / "run/policy", dirs_exist_ok=True)
    with pytest.raises(ValueError, match="was not exported from policy/"):
        push(tmp_path / "run", f"{tmp_path}/repo")
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles/policy.pkl").write_bytes(b"cos\nsystem\n(S'x'\ntR.")
    with pytest.raises(HubError, match=r"there is neither policy/ nor policy\.onnx"):
        pull(f"{tmp_path}/pickles", tmp_path / "out")


def test_a_folder_that_holds_something_is_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    pull(str(LIFT), tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HubError, match="out exists already and is not empty"):
        pull(str(LIFT), tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_client_is_told_what_goes_where(tmp_path, monkeypatch):
    told = []

    class Api:
        endpoint = "https://hub.test"

        def create_repo(self, *args, **options):
            told.append((args, options))

        def upload_folder(self, **options):
            folder = options.pop("folder_path")
            told.append((sorted(file.name for file in folder.iterdir()), options))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    moved = push(LIFT, "lab/lift", private=True, message="first")
    assert moved.where == "https://hub.test/lab/lift"
    made, sent = told
    assert made == (("lab/lift",), {"repo_type": "model", "private": True, "exist_ok": True})
    assert sent[0] == ["README.md", "config.yaml", "policy", "policy.onnx"]
    assert sent[1] == {"repo_id": "lab/lift", "repo_type": "model", "commit_message": "first"}


def test_offline_the_clients_cache_is_used(offline, tmp_path):
    cached(offline, "lab/lift", LIFT)
    (offline / "models--lab--lift/snapshots" / COMMIT / "evil.pkl").write_bytes(b"x")
    moved = pull("lab/lift", tmp_path / "out")
    assert "policy/policy.safetensors" in moved.files and "evil.pkl" not in moved.files
    with pytest.raises(HubError, match="not reached, and the repository has not been fetched"):
        pull("lab/other", tmp_path / "other")
    with pytest.raises(HubError, match=r"the Hub is not reached: .*offline"):
        push(LIFT, "lab/lift")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["push", str(LIFT), "lift"], "'lift' is no repository: give ORG/NAME"),
        (["push", "nothing", "./repo"], "nothing holds neither a policy nor episodes"),
        (["pull", "lab/../lift"], "'lab/../lift' is no repository"),
        (["pull", "./nowhere"], "./nowhere is no folder"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["hub", *words]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_without_the_client_it_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(HubError, match=r"pip install 'penspin_style\[hub\]'"):
        pull("lab/lift", tmp_path / "out")
    assert hub.push(LIFT / "policy.onnx", f"{tmp_path}/repo").kind == "model"  # needs none
