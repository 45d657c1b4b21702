"""Distillation from images, of a cart that the teacher knows and the student only sees."""

import pytest
import torch
import torch.nn.functional as F
from tensordict import TensorDict

from penspin_style.algo.algorithm import rollout
from penspin_style.algo.augment import AugmentConfig
from penspin_style.algo.distill import Distill
from penspin_style.algo.imitation import DistillConfig
from penspin_style.data.rollouts import LABEL, RolloutWriter
from penspin_style.env.task import Latency, ObsTerm
from penspin_style.nets.encoder import NatureCNN, save_encoder
from penspin_style.nets.gaussian_policy import GaussianPolicy
from penspin_style.nets.policy import load_policy, save_policy
from penspin_style.train.checkpoint import Checkpoints
from tests.support.waits import waits
from tests.support.watched import expected, layout, make

CPU = torch.device("cpu")
IMAGES = ("above_rgb", "above_depth")
OFF = {
    **{"shift": 0, "brightness": [1.0, 1.0], "noise": 0.0},
    **{"depth_edge": 0.0, "depth_jitter": 0.0, "depth_disparity": 0.0},
    **{"depth_dropout": 0.0, "depth_lines": 0, "depth_blackout": 0.0},
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def augmented(**changes):
    return AugmentConfig(**{**OFF, **changes})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Push towards the middle: a = tanh(-2 x - v / 2)."""
    folder = tmp_path_factory.mktemp("teacher") / "policy"
    policy = GaussianPolicy(
        "teacher", 3, 1, hidden=[], activation="elu", init_std=0.5, rng=seeded()
    )
    with torch.no_grad():
        policy.net[0].weight.copy_(torch.tensor([[-2.0, -0.5, 0.0]]))
    facts = {"task": "watched", "run": "", "score": {}, "versions": {}}
    card = make(1).card(network=policy.describe(), in_keys=("teacher",), **facts)
    save_policy(policy, card, folder)
    return folder


def student(teacher, env, *, seed=0, augment=None, **cfg):
    cfg = {"encoder": "", "hidden": [16], "latent": 8, "horizon": 5, "minibatch_size": 8, **cfg}
    return Distill(
        DistillConfig(teacher=str(teacher), augment=augment or augmented(), **cfg),
        env.inputs,
        env.groups.reads("student"),
        1,
        iterations=10,
        per_iteration=cfg["horizon"] * env.num_envs,
        device=CPU,
        seed=seed,
    )


def driving(distill):
    """Let the student drive."""
    distill.iteration = distill.cfg.beta_iterations
    return distill


def scene(n=4, seed=1, **config):
    """Environments, and a root whose images have colour and distance in every pixel."""
    env = make(n, seed=seed, **config)
    td, rng = env.current(), seeded(seed)
    for name in env.groups.images:
        shape = td[name].shape
        if name.endswith("rgb"):
            td[name] = torch.randint(60, 180, shape, generator=rng).to(torch.uint8)
        else:
            td[name] = 0.4 + 0.6 * torch.rand(shape, generator=rng)
    return env, td


def plain_features(policy, td):
    """What the heads read of images as they are."""
    with torch.no_grad():
        raw = policy.decode({name: td[name] for name in policy.in_keys})
        return policy.encode(raw.rgb, raw.depth)


def seen(td):
    return {k.removeprefix("seen/"): v for k, v in td.items() if k.startswith("seen/")}


def own_weights(distill):
    return {name: p.detach().clone() for name, p in distill.policy.named_parameters()}


# One view.


def test_without_augmentation_the_student_acts_as_its_exported_function_does(teacher):
    env, td = scene()
    distill = driving(student(teacher, env))
    td = distill.act(td)
    with torch.no_grad():
        own = distill.policy.act(*(td[name] for name in distill.policy.in_keys))
    torch.testing.assert_close(td["action"], own, atol=1e-6, rtol=0.0)
    features = plain_features(distill.policy, td)
    assert seen(td).keys() == features.keys() == set(IMAGES)
    for name, value in features.items():
        torch.testing.assert_close(td[f"seen/{name}"], value, atol=1e-6, rtol=0.0)


def one_step(distill, td):
    """A batch [1, n] of one step."""
    n = len(td)
    batch = distill.act(td)
    nxt = {"fault": torch.zeros(n, 1, dtype=torch.bool), "reward": torch.zeros(n, 1)}
    return batch.set("next", TensorDict(nxt, [n]))[None]


@pytest.mark.parametrize("train_encoder", [False, True])
def test_what_the_student_did_and_what_it_learns_are_of_the_same_view(teacher, train_encoder):
    env, td = scene(8)
    settings = {"train_encoder": train_encoder, "epochs": 1, "augment": AugmentConfig()}
    distill = driving(student(teacher, env, **settings))
    plain = plain_features(distill.policy, td)
    batch = one_step(distill, td)
    distill.process(batch)
    for name in IMAGES:
        assert torch.equal(distill._batch[f"seen/{name}"], batch[f"seen/{name}"][0])
    assert not torch.allclose(batch["seen/above_depth"][0], plain["above_depth"], atol=1e-3)
    with torch.no_grad():
        again = distill._actor(distill._batch.clone())["action"]
    torch.testing.assert_close(again, batch["action"][0], atol=1e-5, rtol=0.0)
    error = (batch["action"] - batch["label"]).square().sum(dim=-1).mean().item()
    assert distill.update()["train/loss"] == pytest.approx(error, rel=1e-3)


def test_features_are_kept_of_frozen_encoders_and_bytes_of_those_that_learn(teacher):
    env, td = scene()
    kept = {}
    for train_encoder in (False, True):
        augment = augmented(brightness=[0.6, 0.6])
        distill = student(teacher, env, augment=augment, train_encoder=train_encoder, pool=True)
        kept[train_encoder] = seen(distill.act(td.clone()))
    frozen, learning = kept[False], kept[True]
    assert (frozen["above_rgb"].dtype, frozen["above_rgb"].shape) == (torch.float32, (4, 64))
    assert (learning["above_rgb"].dtype, learning["above_rgb"].shape) == (
        torch.uint8,
        (4, 1, 3, 16, 16),
    )
    dark = 0.6 * td["above_rgb"].permute(0, 3, 1, 2)[:, None]
    assert (learning["above_rgb"] - dark).abs().max() <= 0.5 + 1e-4  # rounded
    assert torch.equal(frozen["above_depth"], learning["above_depth"])
    assert frozen["above_depth"].shape == (4, 64)


# Augmentation.


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({}, set()),
        ({"shift": 2}, set(IMAGES)),
        ({"brightness": [0.4, 0.6]}, {"above_rgb"}),
        ({"noise": 0.1}, {"above_rgb"}),
        ({"depth_edge": 50.0}, {"above_depth"}),
        ({"depth_jitter": 1.0}, {"above_depth"}),
        ({"depth_disparity": 20.0}, {"above_depth"}),
        ({"depth_dropout": 0.3}, {"above_depth"}),
        ({"depth_lines": 16}, {"above_depth"}),
        ({"depth_blackout": 1.0}, {"above_depth"}),
    ],
    ids=lambda value: ",".join(sorted(value)) or "nothing",
)
def test_every_augmentation_reaches_what_the_network_reads(teacher, changes, changed):
    env, td = scene()
    distill = driving(student(teacher, env, augment=augmented(**changes)))
    plain = plain_features(distill.policy, td)
    with torch.no_grad():
        own = distill.policy.act(*(td[name] for name in distill.policy.in_keys))
    td = distill.act(td)
    moved = {n for n in IMAGES if not torch.allclose(td[f"seen/{n}"], plain[n], atol=1e-5)}
    assert moved == changed
    assert (not torch.allclose(td["action"], own, atol=1e-6)) is bool(changed)


def test_a_shift_moves_what_the_network_sees_by_the_same_pixels_in_all_images(teacher):
    """Upstream shifted images of which the features had been computed before."""
    env, td = scene(12, observation=layout("velocity", *IMAGES, "view_rgb"))
    distill = student(teacher, env, augment=augmented(shift=1))
    raw = distill.policy.decode({name: td[name] for name in distill.policy.in_keys})
    crops = []
    for top in range(3):
        for left in range(3):

            def crop(view, top=top, left=left):
                wide = F.pad(view if view.ndim == 4 else view[:, None], (1,) * 4, mode="replicate")
                height, width = view.shape[-2:]
                return wide[..., top : top + height, left : left + width].reshape(view.shape)

            rgb = {camera: crop(view) for camera, view in raw.rgb.items()}
            depth = {camera: crop(view) for camera, view in raw.depth.items()}
            with torch.no_grad():
                crops.append(distill.policy.encode(rgb, depth))
    got = seen(distill.act(td))
    offsets = []
    for row in range(12):
        fits = {
            name: {
                k
                for k, c in enumerate(crops)
                if torch.allclose(value[row], c[name][row], atol=1e-4)
            }
            for name, value in got.items()
        }
        common = set.intersection(*fits.values())
        assert len(common) == 1, fits
        offsets.append(common.pop())
    assert len(set(offsets)) >= 4


def test_every_step_draws_its_view_anew(teacher):
    env, td = scene()
    distill = student(teacher, env, augment=augmented(noise=0.1))
    first, second = (seen(distill.act(td.clone()))["above_rgb"] for _ in range(2))
    assert not torch.equal(first, second)


def test_the_images_of_a_stack_are_augmented_alike(teacher):
    observation = layout(
        "velocity", above_rgb=ObsTerm(history=2), above_depth=ObsTerm(history=3), view_rgb=ObsTerm()
    )
    env, td = scene(6, observation=observation)
    td["above_rgb"][:, 1] = td["above_rgb"][:, 0]
    td["above_depth"][:] = td["above_depth"][:, :1].clone()
    changes = {"shift": 2, "brightness": [0.4, 1.4]}
    for train_encoder in (False, True):
        distill = student(teacher, env, augment=augmented(**changes), train_encoder=train_encoder)
        plain = plain_features(distill.policy, td)
        batch = one_step(distill, td.clone())
        got = {name: value[0] for name, value in seen(batch).items()}
        one, two = got["above_rgb"].flatten(1).chunk(2, dim=1)
        assert torch.equal(one, two)
        parts = got["above_depth"].chunk(3, dim=1)
        assert torch.equal(parts[0], parts[1]) and torch.equal(parts[0], parts[2])
        assert not torch.allclose(got["above_depth"], plain["above_depth"])
        distill.process(batch)
        assert distill.update()["train/skipped_updates"] == 0.0


def test_a_stack_is_seen_oldest_first(teacher):
    env, td = scene(observation=layout("velocity", above_rgb=ObsTerm(history=2)))
    distill = student(teacher, env, pool=True, layer_norm=False)
    got = seen(distill.act(td.clone()))["above_rgb"]
    policy = distill.policy
    for k in range(2):
        with torch.no_grad():
            rows = td["above_rgb"][:, k].permute(0, 3, 1, 2) / 255.0
            alone = policy.encoders["above"](rows)
        torch.testing.assert_close(got[:, 64 * k : 64 * k + 64], alone, atol=1e-5, rtol=0.0)


# Encoders.


def cycle(env, distill, count=1):
    root, rows = env.current(), []
    for _ in range(count):
        batch, root = rollout(env, distill, root, None)
        distill.process(batch)
        rows.append(distill.update())
    return rows


@pytest.mark.parametrize("train_encoder", [False, True])
def test_an_update_moves_the_encoders_only_if_asked_to(teacher, train_encoder):
    env = make()
    distill = student(teacher, env, train_encoder=train_encoder)
    before = own_weights(distill)
    cycle(env, distill, 2)
    after = own_weights(distill)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still == (
        set() if train_encoder else {f"encoders.above.convs.{i}.weight" for i in range(3)}
    )


def test_the_encoders_begin_with_the_published_weights(teacher, tmp_path):
    published = NatureCNN(32, 32, pool=True, rng=seeded(9))
    save_encoder(published, {}, tmp_path / "encoder")
    env = make(observation=layout("velocity", "above_rgb", "view_rgb"))
    distill = student(teacher, env, encoder=str(tmp_path / "encoder"))
    for camera in ("above", "view"):
        state = distill.policy.encoders[camera].state_dict()
        assert all(torch.equal(state[k], v) for k, v in published.state_dict().items())
    random = student(teacher, env).policy.encoders["above"].state_dict()
    assert not any(torch.equal(random[k], v) for k, v in published.state_dict().items())
    with pytest.raises(ValueError, match="nowhere"):
        student(teacher, env, encoder=str(tmp_path / "nowhere"))
    # nothing is read where there is nothing to encode
    student(teacher, make(observation=layout("position")), encoder=str(tmp_path / "nowhere"))


# In the environment.


def test_labels_in_the_environment_are_the_formula_and_zero_where_the_cart_is_absent(teacher):
    env = make(12, absent_object=0.4, final_images=False, episode_length=4)
    distill = student(teacher, env)
    batch, _ = rollout(env, distill, env.current(), None)
    x, v, _ = (batch["teacher"] / (1 + 1e-5) ** 0.5).unbind(-1)
    absent = batch["is_absent"][..., 0]
    assert 0 < absent[0].sum() < 12 and not torch.equal(absent[0], absent[-1])
    label = torch.where(absent, 0.0, torch.tanh(-2 * x - v / 2))
    torch.testing.assert_close(batch["label"][..., 0], label, atol=1e-6, rtol=0.0)
    assert (batch["above_depth"][absent] == 0.0).all()
    apart, _ = rollout(env, driving(distill), env.current(), None)
    assert not torch.equal(apart["label"], apart["action"])


def test_the_student_learns_to_act_on_what_it_sees(teacher):
    env = make(24, final_images=False, stagger=True, episode_length=20)
    distill = student(
        *(teacher, env),
        **{"hidden": [32, 32], "latent": 16, "horizon": 8, "minibatch_size": 64},
        **{"learning_rate": 3e-3, "replay_capacity": 4000, "augment": augmented(noise=0.02)},
    )
    cycle(env, distill, 30)
    fresh = make(200, seed=77)
    td = fresh.current()
    policy, label = distill.policy, distill.teacher.act(td["teacher"])

    def error(**changes):
        given = {**{name: td[name] for name in policy.in_keys}, **changes}
        with torch.no_grad():
            return (policy.act(*given.values()) - label).square().mean().item()

    blank = {name: torch.zeros_like(td[name]) for name in IMAGES}
    assert error() < 0.05
    assert error(**blank) > 0.3  # it has nothing else to tell where the cart is


def test_a_restored_run_continues_bit_for_bit(teacher, tmp_path):
    config = {
        **{"absent_object": 0.3, "episode_length": 4, "randomize": True, "final_images": False},
        "latency": {"student": Latency(weights=[1.0, 1.0])},
    }
    for train_encoder in (False, True):
        settings = {"train_encoder": train_encoder, "replay_capacity": 30, "beta_iterations": 4}
        settings["augment"] = AugmentConfig()
        envs = [make(seed=seed, **config) for seed in (1, 2)]
        one, two = (student(teacher, e, seed=i, **settings) for i, e in enumerate(envs))
        cycle(envs[0], one, 2)
        cycle(envs[1], two, 1)
        envs[1].load_state_dict(envs[0].state_dict())
        checkpoints = Checkpoints(tmp_path / str(train_encoder))
        checkpoints.save(2, {"algo": one.state_dict()}, None)
        two.load_state_dict(checkpoints.newest()[1]["algo"])
        assert cycle(envs[0], one, 2) == cycle(envs[1], two, 2)
        a, b = own_weights(one), own_weights(two)
        assert all(torch.equal(a[name], b[name]) for name in a)
        assert len(one._replay.content) == 30


def test_a_rollout_of_a_student_never_waits_for_the_accelerator(teacher):
    config = {"absent_object": 0.3, "episode_length": 5, "final_images": False}
    env = make(6, latency={"student": Latency()}, **config)
    distill = student(teacher, env, augment=AugmentConfig(), horizon=12)
    assert waits(env, distill) == []


def test_the_students_folder_acts_as_the_student_does(teacher, tmp_path):
    env = make()
    distill = student(teacher, env, activation="silu", max_depth={"above": 2.5})
    cycle(env, distill, 2)
    facts = {"task": "watched", "run": "r", "score": {}, "versions": {}}
    card = env.card(network=distill.policy.describe(), in_keys=distill.policy.in_keys, **facts)
    assert [i.name for i in card.inputs] == ["student", "above_rgb", "above_depth"]
    assert set(card.preprocessing) == set(IMAGES)
    save_policy(distill.policy, card, tmp_path / "policy")
    back, _ = load_policy(tmp_path / "policy")
    values = [env.current()[name] for name in back.in_keys]
    with torch.no_grad():
        assert torch.equal(back.act(*values), distill.policy.act(*values))


# Cloning.


def test_recorded_images_are_cloned_with_their_own_labels(teacher, tmp_path):
    env = make(8, observation=layout("position", *IMAGES))
    distill, writer = student(teacher, env), RolloutWriter(tmp_path / "r", env.inputs, {})
    root = env.current()
    for _ in range(4):
        td = distill.act(root)
        writer.add({**{i.name: td[i.name] for i in env.inputs}, LABEL: td["label"]})
        _, root = env.step_and_maybe_reset(td)
    writer.close()
    clone = student("", env, rollouts=str(tmp_path / "r"), learning_rate=3e-3, horizon=4)
    losses = []
    for _ in range(15):
        clone.process(None)
        batch = clone._batch
        x = batch["student"][:, 0]
        assert set(batch.keys()) == {"student", LABEL, "weight", *(f"seen/{n}" for n in IMAGES)}
        shown = torch.stack([expected(at) for at in x.tolist()])
        few = clone.policy.encode({}, {"above": shown})["above_depth"]
        torch.testing.assert_close(batch["seen/above_depth"], few, atol=1e-4, rtol=0.0)
        losses.append(clone.update()["train/loss"])
    assert losses[-1] < 0.2 * losses[0]
    blind = make(8, observation=layout("velocity", "view_rgb"))
    with pytest.raises(ValueError, match=r"has not recorded 'student' as the student reads it"):
        student("", blind, rollouts=str(tmp_path / "r"))
    more = make(8, observation=layout("position", "view_rgb"))
    with pytest.raises(ValueError, match=r"not recorded 'view_rgb'.* it holds above_depth, above_"):
        student("", more, rollouts=str(tmp_path / "r"))


def test_an_unknown_camera_in_max_depth_is_refused(teacher):
    with pytest.raises(
        ValueError, match=r"max_depth names \['below'\], the cameras are \['above'\]"
    ):
        student(teacher, make(), max_depth={"below": 1.0})
