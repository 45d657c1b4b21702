"""ACT, the baseline, and the temporal ensembling that makes one action of its chunks."""

import csv
import dataclasses
import math

import numpy as np
import pytest
import torch

from penspin_style.data.dataset import windows
from penspin_style.deploy.history import Observer
from penspin_style.deploy.torch_policy import TorchPolicy
from penspin_style.features import Feature, Input
from penspin_style.nets.act import ACT
from penspin_style.nets.policy import save_policy
from penspin_style.nets.student import StudentPolicy
from real.act import ACTConfig, Trainer, act_inputs, eyes_of, load_act, main, parser
from real.serving.action_chunking import Ensemble, EnsembledPolicy
from real.serving.protocol import hello
from tests.real.test_finetune import seeing, student
from tests.support.episodes import columns, record, taught, vector_card

SMALL = {
    **{"num_queries": 5, "hidden_dim": 16, "dim_feedforward": 32, "enc_layers": 1},
    **{"dec_layers": 2, "nheads": 2, "latent_dim": 4},
}

pytestmark = pytest.mark.usefixtures("one_thread")


def config(**changes):
    base = {**SMALL, "num_epochs": 20, "eval_freq": 5, "eval_start_epoch": 0, "lr": 3e-3, "seed": 1}
    return ACTConfig(**{**base, "val_ratio": 0.34, "kl_weight": 1.0, **changes})


def trajectories(folder, card, count=3, steps=20):
    return [windows(record(folder, card, taught(card, steps, i)), card) for i in range(count)]


def own_card(card=None, mode=""):
    card = card or vector_card()
    return dataclasses.replace(card, inputs=act_inputs(card, mode))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Three trajectories as ACT reads them."""
    return trajectories(tmp_path_factory.mktemp("rows"), own_card())


def network(inputs=None, naction=3, eyes=None, seed=0, **changes):
    sizes = {**SMALL, "dropout": 0.1, **changes}
    rng = torch.Generator().manual_seed(seed)
    return ACT(inputs or own_card().inputs, naction, eyes=eyes, rng=rng, **sizes)


# Temporal ensembling.


def test_ensembling_is_the_weighted_mean_that_was_computed_by_hand():
    ensemble = Ensemble(3, k=0.5)
    chunks = [np.array([[10.0], [20.0], [30.0]]) + i for i in range(4)]
    e = math.exp
    assert ensemble(chunks[0]) == 10.0
    # the older opinion first: 20 said one step ago, 11 said now
    assert ensemble(chunks[1]) == pytest.approx((20 + 11 * e(-0.5)) / (1 + e(-0.5)))
    third = (30 + 21 * e(-0.5) + 12 * e(-1.0)) / (1 + e(-0.5) + e(-1.0))
    assert ensemble(chunks[2]) == pytest.approx(third)
    # the first chunk has nothing to say any more
    fourth = (31 + 22 * e(-0.5) + 13 * e(-1.0)) / (1 + e(-0.5) + e(-1.0))
    assert ensemble(chunks[3]) == pytest.approx(fourth)
    ensemble.reset()
    assert ensemble(chunks[3]) == 13.0


def test_a_batch_is_ensembled_as_each_of_its_rows():
    rng = np.random.default_rng(0)
    chunks = rng.normal(size=(7, 4, 3, 2))  # steps, batch, horizon, naction
    whole, alone = Ensemble(3), [Ensemble(3) for _ in range(4)]
    for chunk in chunks:
        together = whole(chunk)
        assert np.allclose(together, [one(chunk[i]) for i, one in enumerate(alone)])
    assert whole.k == 0.01
    with pytest.raises(ValueError, match="a chunk has 4 actions, not 3"):
        whole(np.zeros((4, 2)))


def test_an_ensembled_policy_is_one_of_single_actions(rows):
    card = own_card()
    policy = TorchPolicy(network(), card)
    whole, observer, ensemble = EnsembledPolicy(policy), Observer(card), Ensemble(5)
    rng = np.random.default_rng(0)
    for _ in range(8):
        values = {"proprio": rng.random(6, np.float32), "fingertips": rng.random(3, np.float32)}
        inputs = observer(values)
        action = whole.act(inputs)
        assert np.allclose(action, ensemble(policy.act(inputs)), atol=1e-6) and action.shape == (3,)
    first = whole.act(inputs)
    other = whole.fork()
    assert np.allclose(other.act(inputs), policy.act(inputs)[0])  # it has seen nothing yet
    whole.reset()
    again = whole.act(inputs)
    assert np.allclose(again, policy.act(inputs)[0]) and not np.allclose(first, again)
    assert hello(policy)["horizon"] == 5  # as the policy server offers it


# The network.


def test_two_iterations_reduce_the_loss(rows):
    trainer = Trainer(own_card().inputs, None, rows, config(real_batch_size=64))

    def loss():
        rows = trainer.train
        chunk, kl = trainer.policy(rows.numbers, rows.seen, rows.label, rows.padded)
        there = (~rows.padded)[..., None].expand_as(chunk)
        return ((chunk - rows.label).abs()[there].mean() + kl.mean()).item()

    losses = [loss()]
    for _ in range(2):
        trainer._epoch()
        losses.append(loss())
    assert losses[0] > losses[1] > losses[2]


def test_what_is_learned_holds_on_the_validation_trajectories(rows):
    trainer = Trainer(own_card().inputs, None, rows, config(num_epochs=80, eval_freq=20))
    seen = []
    result = trainer.fit(seen.append)
    losses = [row["val/loss"] for row in seen]
    assert result.best == min(losses) and trainer.validate() == result.best
    assert result.best < result.before - 0.02
    assert sorted([*result.train, *result.validation]) == [0, 1, 2]


def test_the_seed_alone_decides(rows):
    def weights(seed):
        result = Trainer(own_card().inputs, None, rows, config(num_epochs=3, seed=seed)).fit()
        return torch.cat([p.detach().flatten() for p in result.policy.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_every_chunk_is_the_actions_from_its_step_on_and_ends_with_its_trajectory(rows):
    trainer = Trainer(own_card().inputs, None, rows, config(val_ratio=0.0))
    labels = [torch.from_numpy(r.labels) for r in rows]
    assert len(trainer.train.label) == 60
    assert torch.equal(trainer.train.label[3], labels[0][3:8])
    last = trainer.train.label[19], trainer.train.padded[19]
    assert torch.equal(last[0][0], labels[0][19]) and (last[0][1:] == 0).all()
    assert last[1].tolist() == [False, True, True, True, True]


def test_what_is_padded_changes_neither_latent_nor_chunk():
    net, rng = network(), torch.Generator().manual_seed(0)
    numbers, actions = torch.rand(4, 9, generator=rng), torch.rand(4, 5, 3, generator=rng)
    padded = torch.zeros(4, 5, dtype=torch.bool)
    padded[:, 3:] = True
    other = actions.clone()
    other[:, 3:] = 7.0
    one, two = (net(numbers, {}, a, padded) for a in (actions, other))
    assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    assert not torch.equal(net(numbers, {}, other)[0], one[0])


def test_the_divergence_is_that_of_normals():
    net = network()
    rng = torch.Generator().manual_seed(0)
    numbers, actions = torch.rand(4, 9, generator=rng), torch.rand(4, 5, 3, generator=rng)
    mean, log_var = net._posterior(net._tokens(numbers), actions, None, None).chunk(2, dim=-1)
    mine = torch.distributions.Normal(mean, (0.5 * log_var).exp())
    wanted = torch.distributions.kl_divergence(mine, torch.distributions.Normal(0.0, 1.0))
    assert torch.allclose(net(numbers, {}, actions)[1], wanted.sum(dim=-1), atol=1e-5)
    assert (net(numbers, {})[1] == 0).all()


ENDS = Feature("pen_ends", (2, 3), "m")


def test_the_pens_ends_may_be_exchanged_and_nothing_else():
    pos = Feature("joint_pos", (3,), "rad")
    net = network((Input("numbers", (pos, ENDS)),))
    net.normalizer.update(torch.rand(40, 9, generator=torch.Generator().manual_seed(1)))
    x = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))
    swapped = torch.cat((x[:, :3], x[:, 6:], x[:, 3:6]), dim=1)
    said = net.act(x)
    assert torch.allclose(net.act(swapped), said, atol=1e-6)
    assert not torch.allclose(net.act(x.flip(0)), said, atol=1e-3)  # rows stay their own
    turned = torch.cat((x[:, :3], x[:, 4:6], x[:, 3:4], x[:, 6:]), dim=1)
    assert not torch.allclose(net.act(turned), said, atol=1e-4)


def test_the_pens_ends_are_read_when_it_acts():
    card = dataclasses.replace(vector_card(), inputs=(Input("numbers", (ENDS,)),))
    policy = TorchPolicy(network(card.inputs), card)
    observer = Observer(card)
    ends = np.random.default_rng(0).random((2, 2, 3), np.float32)
    one, two = (policy.act(observer({"pen_ends": e})) for e in ends)
    assert one.shape == (5, 3) and not np.allclose(one, two, atol=1e-4)


def test_it_reads_the_newest_values_of_what_the_student_reads():
    card = vector_card(history=30, delay=1)
    (given,) = act_inputs(card)
    assert [(f.name, f.history, f.delay) for f in given.features] == [
        *(("proprio", 1, 0), ("fingertips", 1, 0))
    ]
    (given,) = act_inputs(card, "fingertips")
    assert [f.name for f in given.features] == ["fingertips"]
    with pytest.raises(ValueError, match="no 'obj_ends', the student reads"):
        act_inputs(card, "proprio-obj_ends")


def test_images_are_seen_through_the_students_frozen_encoder(tmp_path):
    policy, card = seeing()
    own = own_card(card)
    rows = trajectories(tmp_path, own, steps=8)
    trainer = Trainer(own.inputs, eyes_of(policy), rows, config(num_epochs=2, eval_freq=1))
    before = {k: v.clone() for k, v in policy.encoders.state_dict().items()}
    result = trainer.fit()
    assert all(
        torch.equal(before[k], v) for k, v in result.policy.eyes.encoders.state_dict().items()
    )
    given = [torch.from_numpy(rows[0].inputs[i.name]) for i in own.inputs]
    said = result.policy.act(*given)
    black = [torch.zeros_like(v) if v.dtype == torch.uint8 else v for v in given]
    assert not torch.allclose(said, result.policy.act(*black), atol=1e-4)
    with pytest.raises(ValueError, match="nothing encodes"):
        Trainer(own.inputs, None, rows, config())


# The command.


def test_the_command_leaves_a_policy_that_acts_as_the_trained_one(tmp_path):
    policy, card = student()
    save_policy(policy, card, tmp_path / "run" / "policy")
    for seed in range(3):
        record(tmp_path / "data", card, taught(card, 20, seed), success=seed < 2)
    argv = [f"--real-dataset-folder={tmp_path / 'data'}", f"--checkpoint-path={tmp_path / 'run'}"]
    argv += [f"--{k}={v}" for k, v in SMALL.items()]
    argv += ["--num-epochs=4", "--eval-freq=2", "--eval-start-epoch=2", f"--out={tmp_path}"]
    assert main([*argv, "--device=cpu", "--quiet"]) == 0
    folder = tmp_path / "toy" / "act"
    policy = load_act(folder)
    assert policy.horizon == 5
    assert len(policy.card.score["episodes"]) == 1 == len(policy.card.score["validation_episodes"])
    with (folder / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["2.0", "4.0"]
    assert main([*argv, "--device=cpu", "--quiet"]) == 2  # never written over
    again = load_act(folder / "policy")
    inputs = {"numbers": np.random.default_rng(0).random(9, np.float32)}
    batch = {"numbers": inputs["numbers"][None].repeat(2, axis=0)}
    assert np.array_equal(policy.act(inputs), again.act(inputs)) and policy.act(inputs).shape == (
        5,
        3,
    )
    assert np.allclose(policy.act(batch), policy.act(inputs), atol=1e-6)
    with pytest.raises(ValueError, match="kind 'temporal', no ACT"):
        load_act(tmp_path / "run")


def test_the_network_of_a_seeing_act_is_built_again_from_its_card(tmp_path):
    policy, card = seeing()
    own = own_card(card)
    net = network(own.inputs, eyes=eyes_of(policy))
    own = dataclasses.replace(own, network=net.describe())
    save_policy(net, own, tmp_path / "policy")
    again = load_act(tmp_path)
    assert isinstance(again.network.eyes, StudentPolicy)
    values = columns(own, 3)
    given = {"numbers": values["observation/fingertips"]}
    given |= {n: values[f"observation/{n}"] for n in ("front_rgb", "front_depth")}
    wanted = net.eval().act(*(torch.from_numpy(given[i.name]) for i in own.inputs))
    assert np.allclose(again.act(given), wanted.detach().numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("--num-queries=0", "--num_queries=0: must be at least 1"),
        ("--hidden_dim=60", "--hidden_dim=60: must be a multiple of 8"),
        ("--kl_weight=-1", "--kl_weight=-1.0: must be at least 0"),
        ("--eval-start-epoch=2001", "--eval-start-epoch=2001: beyond --num-epochs"),
        ("--lr=inf", "--lr=inf: must be positive and finite"),
    ],
)
def test_invalid_arguments_are_refused_in_one_line(capsys, word, message):
    assert main(["--real-dataset-folder=d", "--checkpoint-path=c", word]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_every_option_of_penspins_is_there_with_its_default():
    cfg, text = ACTConfig(), parser().format_help()
    for option, default in {
        **{"lr": 3e-4, "weight_decay": 1e-2, "kl_weight": 20.0, "dim_feedforward": 3200},
        **{"num_epochs": 2000, "real_batch_size": 64, "num_queries": 30, "hidden_dim": 64},
        **{"val_ratio": 0.1, "eval_freq": 100, "eval_start_epoch": 400, "seed": 20230915},
        **{"latent_dim": 32, "enc_layers": 4, "dec_layers": 7, "nheads": 8},
    }.items():
        assert getattr(cfg, option) == default and f"--{option} " in text
        assert f"--{option.replace('_', '-')} " in text
    assert "--input-mode " in text and "--real-dataset-folder " in text
