"""Sums and means over the ranks of one training."""

import json
import signal

import pytest
import torch

from penspin_style.nets.normalizer import Normalizer
from penspin_style.system import ranks
from tests.support.ranks import run_ranks

CPU = torch.device("cpu")

pytestmark = pytest.mark.forks


def told(tmp_path, count, work):
    """What `work()` gives on each rank, as JSON."""

    def on_rank(rank):
        with ranks.joined(CPU):
            (tmp_path / f"{rank}.json").write_text(json.dumps(work()))

    assert run_ranks(count, on_rank) == [0] * count
    return [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(count)]


def test_one_process_is_rank_0_of_1_and_sums_nothing(monkeypatch):
    assert (ranks.rank(), ranks.size(), ranks.is_first(), ranks.here()) == (0, 1, True, (0, 1))
    x = torch.tensor([1.5, 2.0])
    assert ranks.total(x) is x
    assert ranks.largest(7) == 7
    assert ranks.own_seed(3) == 3
    assert ranks.gather(b"x") == [b"x"] and ranks.broadcast(b"y") == b"y"
    monkeypatch.setenv("RANK", "1")  # a scheduler's, without the rest of torchrun's
    assert (ranks.rank(), ranks.size()) == (0, 1)


def test_a_number_of_ranks_that_is_none_is_refused(monkeypatch):
    for key in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ValueError, match="WORLD_SIZE=two in the environment: must be a whole"):
        ranks.size()


def test_sums_means_and_texts_of_three_ranks(tmp_path):
    def work():
        own = ranks.rank()
        values = [torch.tensor([1.0 + own]), torch.tensor([[10.0 * own, 1.0]])]
        ranks.average_(values, torch.tensor(float(own)))
        none = [torch.ones(2)]
        ranks.average_(none, torch.tensor(0.0))
        return {
            "total": ranks.total(torch.tensor([1.0, own])).tolist(),
            "largest": ranks.largest(5 * own),
            "any": [ranks.any_of(own == 1), ranks.any_of(False)],
            "first": [ranks.of_first(lambda: own == 0), ranks.of_first(lambda: own == 1)],
            "means": [v.tolist() for v in values],
            "none": none[0].tolist(),
            "gathered": [part.decode() for part in ranks.gather(b"abc"[:own])],
            "told": ranks.broadcast(f"from {own}".encode()).decode(),
            "seed": ranks.own_seed(1),
        }

    found = told(tmp_path, 3, work)
    for own, each in enumerate(found):
        assert each["total"] == [3.0, 3.0]
        assert each["largest"] == 10
        assert each["any"] == [True, False]
        assert each["first"] == [True, False]
        # weights 0, 1, 2: (2 + 2 * 3) / 3 and (10 + 2 * 20) / 3
        assert each["means"][0] == pytest.approx([8 / 3])
        assert each["means"][1] == [pytest.approx([50 / 3, 1.0])]
        assert each["none"] == [0.0, 0.0]
        assert each["gathered"] == (["", "a", "ab"] if own == 0 else [])
        assert each["told"] == "from 0"
    seeds = [each["seed"] for each in found]
    assert seeds[0] == 1 and min(seeds[1:]) > 10**6 and len(set(seeds)) == 3
    assert max(seeds) < 2**32


def test_statistics_of_two_ranks_are_those_of_all_rows_together(tmp_path):
    rows = 50.0 + torch.randn(90, 3, generator=torch.Generator().manual_seed(0))
    rows[5, 1] = float("nan")
    keep = torch.arange(90) % 7 != 0
    keep[5] = False
    parts = {0: slice(0, 60), 1: slice(60, 90)}

    def state(normalizer):
        return {k: v.tolist() for k, v in normalizer.state_dict().items()}

    def work():
        own, normalizer = parts[ranks.rank()], Normalizer(3)
        normalizer.update(rows[own], keep[own])
        normalizer.update(rows[own][: 10 * (1 - ranks.rank())])  # of one of them nothing
        return state(normalizer)

    first, second = told(tmp_path, 2, work)
    assert first == second
    whole = Normalizer(3)
    whole.update(rows, keep)
    whole.update(rows[:10])
    assert first["count"] == float(whole.count) == int(keep.sum()) + 9
    assert first["mean"] == pytest.approx(whole.mean.tolist(), abs=1e-5)
    assert first["var"] == pytest.approx(whole.var.tolist(), rel=1e-5)


def test_a_rank_whose_peer_ends_says_so_in_one_line(tmp_path):
    def work(rank):
        with ranks.joined(CPU):
            if rank == 1:
                signal.raise_signal(signal.SIGKILL)
            try:
                ranks.total(torch.ones(1))
            except ranks.PeerLostError as error:
                (tmp_path / "said").write_text(str(error))
        return 3

    assert run_ranks(2, work, seconds=60.0) == [3, -signal.SIGKILL]
    said = (tmp_path / "said").read_text()
    assert said.startswith("rank 0 of 2: another process has ended") and "\n" not in said
    assert said.endswith("resume=true continues")
