import errno
import json
import pathlib
import re
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penspin_style import storage
from penspin_style.algo.ppo import PPO, PPOConfig
from penspin_style.features import Feature, Input
from penspin_style.train.checkpoint import Checkpoints, NoCheckpointError
from tests.support import faulty_disk

PACKAGE = pathlib.Path(storage.__file__).parent
NAMES = ("state.safetensors", "state.json", storage.MANIFEST)


def state(value=1.0):
    """A state with every kind of value that a run keeps."""
    adam = {"step": torch.tensor(3.0), "exp_avg": torch.full((3,), value)}
    return {
        "algo": {
            "policy": {"net.0.weight": torch.full((4, 3), value), "net.0.bias": torch.zeros(4)},
            "optimizer": {
                "state": {0: adam, 1: {**adam, "step": torch.tensor(4.0)}},
                "param_groups": [{"lr": 3e-4, "betas": [0.9, 0.999], "params": [0, 1]}],
            },
            "rng": torch.Generator().get_state(),
            "skipped_in_a_row": 0,
        },
        "env": {
            "sim": torch.tensor([[1e-300, -0.0], [float("nan"), 2.0]], dtype=torch.float64),
            "counted": torch.tensor([True, False]),
            "step_count": torch.tensor([2**62, -1]),
            "scalar": torch.tensor(7),
            "none": torch.zeros(2, 0),
        },
        "run": {
            "iteration": int(value),
            "score": None,
            "rate_halved": False,
            "name": "Größe\n",
            "x": 0.1,
        },
    }


def same(a, b):
    """Equal bit for bit, in type, dtype and shape; a tuple may have become a list."""
    if isinstance(a, torch.Tensor):
        bits = [t.contiguous().view(-1).view(torch.uint8) if t.ndim else t.view(1) for t in (a, b)]
        both = a.dtype == b.dtype and a.shape == b.shape
        return both and (a.ndim == 0 or torch.equal(*bits)) and (a.ndim > 0 or bool(a == b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@pytest.fixture
def checkpoints(tmp_path):
    """Iterations 1 to 3."""
    out = Checkpoints(tmp_path / "checkpoints", keep_last=3)
    for i in (1, 2, 3):
        out.save(i, state(float(i)), None)
    return out


def test_a_nested_state_comes_back_bit_for_bit(checkpoints):
    folder, found, messages = checkpoints.newest()
    assert (folder.name, messages) == ("00000003", [])
    assert same(found, state(3.0))
    assert list(found["algo"]["optimizer"]["state"]) == [0, 1]
    assert found["run"]["score"] is None
    dtypes = {t.dtype for t in (*found["env"].values(), found["algo"]["rng"])}
    assert dtypes == {torch.float64, torch.bool, torch.int64, torch.float32, torch.uint8}


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(
        [torch.zeros(0), torch.tensor(True), torch.arange(6.0).view(2, 3).T, torch.ones(2).half()]
    )
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("ab.", max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(tree=TREES)
def test_any_nested_state_comes_back(tmp_path_factory, tree):
    checkpoints = Checkpoints(tmp_path_factory.mktemp("any"))
    checkpoints.save(0, {"env": tree}, None)
    assert same(checkpoints.newest()[1], {"env": tree})


def ppo(seed=0):
    inputs = (Input("teacher", (Feature("x", (5,)),)),)
    cfg = PPOConfig(hidden=[8], critic_hidden=[8])
    return PPO(cfg, inputs, 2, device=torch.device("cpu"), seed=seed)


def test_an_algorithm_continues_from_a_checkpoint_with_its_optimiser(tmp_path):
    one, other = ppo(0), ppo(1)
    weights = one.optimizer.param_groups[0]["params"]
    sum(p.square().sum() for p in weights).backward()
    one.optimizer.step()
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"algo": one.state_dict()}, None)
    other.load_state_dict(checkpoints.newest()[1]["algo"])
    assert same(other.state_dict(), one.state_dict())
    assert len(one.state_dict()["optimizer"]["state"]) == len(weights) == 9


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["policy", "optimizer"])
def test_weights_that_are_not_finite_are_refused_and_nothing_is_published(
    checkpoints, where, value
):
    bad = state()
    branch = bad["algo"][where]
    tensor = branch["net.0.weight"] if where == "policy" else branch["state"][1]["exp_avg"]
    tensor.view(-1)[2] = value
    with pytest.raises(ValueError, match=rf"algo/{where}/.* is not finite"):
        checkpoints.save(4, bad, None)
    assert checkpoints.newest()[0].name == "00000003"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {1, 2}}, "env/a is set"),
        ({"a": [object()]}, "env/a/0 is object"),
        ({"a": {"b": b"bytes"}}, "env/a/b is bytes"),
        ({"a": torch.nn.Linear(1, 1)}, "env/a is Linear"),
        ({"a": 1j}, "env/a is complex"),
        ({(1, 2): 3}, r"env has \(1, 2\)"),
        ({"1": torch.ones(1), 1: torch.ones(1)}, "two keys of a checkpoint are spelled env/1"),
        ({"a/b": torch.ones(1), "a": {"b": torch.ones(1)}}, "spelled env/a/b"),
    ],
)
def test_what_cannot_come_back_the_same_is_refused_by_its_path(checkpoints, value, message):
    with pytest.raises(TypeError, match=message):
        checkpoints.save(4, {"env": value}, None)
    assert [f.name for f in checkpoints.folder.iterdir()].count("00000004") == 0


def test_the_last_few_and_the_best_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep_last=2)
    scores = {0: None, 1: 0.2, 2: 0.7, 3: None, 4: 0.5, 5: 0.6, 6: None}
    kept = []
    for i, score in scores.items():
        checkpoints.save(i, state(float(i)), score)
        kept.append([int(f.name) for f in checkpoints.published()])
    assert kept == [[0], [0, 1], [1, 2], [2, 3], [2, 3, 4], [2, 4, 5], [2, 5, 6]]
    assert checkpoints.best().name == "00000002"
    assert same(checkpoints.load(checkpoints.best()), state(2.0))


def test_the_newest_is_the_best_among_equals_and_where_nothing_was_evaluated(tmp_path):
    scored, without = Checkpoints(tmp_path / "a", 5), Checkpoints(tmp_path / "b", 5)
    for i in range(4):
        scored.save(i, state(), 0.0 if i < 3 else None)
        without.save(i, state(), None)
    assert scored.best().name == "00000002"
    assert without.best().name == "00000003"
    assert Checkpoints(tmp_path / "c").best() is None


def _flip(path, k):
    whole = bytearray(path.read_bytes())
    whole[k * (len(whole) - 1) // 19] ^= 1 << (k % 8)
    path.write_bytes(whole)


def _cut(path, k):
    path.write_bytes(path.read_bytes()[: k * path.stat().st_size // 20])


def _delete(path, k):
    path.unlink()


def _extra(path, k):
    (path.parent / f"{path.name}.copy{k}").write_bytes(path.read_bytes())


def _from_the_one_before(path, k):
    shutil.copy(path.parent.parent / "00000002" / path.name, path)


DAMAGES = {_flip: 20, _cut: 20, _delete: 1, _extra: 1, _from_the_one_before: 1}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    tmp_path, checkpoints, name, damage
):
    for k in range(DAMAGES[damage]):
        copy = Checkpoints(tmp_path / str(k))
        shutil.copytree(checkpoints.folder, copy.folder)
        damage(copy.folder / "00000003" / name, k)
        folder, found, (message,) = copy.newest()
        assert folder.name == "00000002"
        assert same(found, state(2.0))
        assert "checkpoint 00000003 is damaged and passed over" in message
        # swapped manifests accuse the files that they do not describe
        named = "state" if damage is _from_the_one_before and name == storage.MANIFEST else name
        assert named in message


def test_checkpoints_whose_folders_were_swapped_are_both_damaged(checkpoints):
    one, two = (checkpoints.folder / f"0000000{i}" for i in (2, 3))
    one.rename(checkpoints.folder / "away")
    two.rename(one)
    (checkpoints.folder / "away").rename(two)
    folder, _, messages = checkpoints.newest()
    assert folder.name == "00000001"
    assert [re.search(r"is of iteration (\d)", m)[1] for m in messages] == ["2", "3"]


def test_when_all_are_damaged_each_is_named(checkpoints):
    for folder in checkpoints.published():
        (folder / "state.json").unlink()
    with pytest.raises(NoCheckpointError) as error:
        checkpoints.newest()
    assert str(error.value).count("state.json is missing") == 3
    with pytest.raises(NoCheckpointError, match="the folder holds none"):
        Checkpoints(checkpoints.folder / "absent").newest()


def test_stages_and_foreign_files_are_no_checkpoints_and_stages_go_with_the_next_save(checkpoints):
    for name in (".stage-killed", "123", "best", "00000004.tmp"):
        shutil.copytree(checkpoints.folder / "00000003", checkpoints.folder / name)
    assert checkpoints.newest()[0].name == "00000003"
    checkpoints.save(4, state(4.0), None)
    names = {f.name for f in checkpoints.folder.iterdir()}
    assert names == {"00000002", "00000003", "00000004", "123", "best", "00000004.tmp"}


def test_a_checkpoint_is_not_written_again_but_a_damaged_one_is(checkpoints):
    path = checkpoints.folder / "00000003" / "state.json"
    checkpoints.save(3, state(9.0), None)
    assert same(checkpoints.newest()[1], state(3.0))
    path.write_text("{}")
    checkpoints.save(3, state(9.0), None)
    assert same(checkpoints.newest()[1], state(9.0))


@pytest.mark.parametrize("error", faulty_disk.ERRORS)
def test_a_disk_error_at_any_call_of_a_save_leaves_the_earlier_checkpoints(
    tmp_path, monkeypatch, error
):
    """Rotation too: it may fail, the save is done by then."""
    published = []
    for k in range(1000):
        checkpoints = Checkpoints(tmp_path / str(k), keep_last=1)
        checkpoints.save(1, state(1.0), None)
        with monkeypatch.context() as patch:
            disk = faulty_disk.FaultyDisk(patch, k, getattr(errno, error))
            try:
                checkpoints.save(2, state(2.0), None)
                published.append(k)
            except OSError:
                pass
        if len(disk.calls) <= k:
            break
        folder, found, messages = checkpoints.newest()
        assert not messages
        assert same(found, state(2.0 if k in published else 1.0))
        assert folder.name == ("00000002" if k in published else "00000001")
    assert k == 11  # stage, 2 writes, 2 flushes, manifest, flush, stage, rename, parent, rotation
    assert published == [10, 11]


def test_nothing_in_the_package_reads_or_writes_pickle():
    sources = [*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "tasks").rglob("*.py")]
    assert len(sources) > 30
    forbidden = re.compile(
        r"torch\.(load|save)\b|\b(import|from) (pickle|dill|joblib|shelve|marshal)\b"
        r"|allow_pickle=True|jit\.load"
    )
    found = [f"{f}: {m[0]}" for f in sources if (m := forbidden.search(f.read_text()))]
    assert not found


def test_a_checkpoint_is_json_and_safetensors_alone(checkpoints):
    folder = checkpoints.newest()[0]
    assert sorted(f.name for f in folder.iterdir()) == sorted(NAMES)
    for name in ("state.json", storage.MANIFEST):
        json.loads((folder / name).read_text())
    header = (folder / "state.safetensors").read_bytes()
    assert (
        json.loads(header[8 : 8 + int.from_bytes(header[:8], "little")])["env/sim"]["dtype"]
        == "F64"
    )
