"""Images among the observations, on a cart whose place can be read off them."""

import pytest
import torch
from torchrl.envs.utils import check_env_specs

from penspin_style.env.env import Env
from penspin_style.env.task import Camera, Latency, ObsTerm, TaskConfig, load_task
from penspin_style.render.renderer import View
from tests.support import toy, watched
from tests.support.watched import AWAY, DEPTH, NUMBERS, expected, go, layout, make, place, seen_at

FAR = (0.9, 0.4, -0.6, -1.1)  # m, of four carts: on one pixel column and the next
NAN = float("nan")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def everyone(num_envs):
    return torch.ones(num_envs, dtype=torch.bool)


# What is rendered.


def test_an_image_shows_what_the_pinhole_says():
    env = make()
    seen = go(env, *FAR)[0]["next"]
    images = torch.stack([expected(x) for x in FAR])
    torch.testing.assert_close(seen["above_depth"], images, atol=1e-4, rtol=0.0)
    assert len({tuple(p.flatten().tolist()) for p in images}) == 4
    red = seen["above_rgb"].float()
    sign = images > 0
    assert (red[..., 0][sign] > 200).all() and (red[..., 1:][sign] < 120).all()
    assert red[~sign].max() == 0.0


def test_only_what_a_group_lists_is_rendered():
    cameras = {"above": Camera(16, 16), "view": Camera(8, 12)}
    cfg = TaskConfig(cameras=cameras, observation=layout("view_depth", "above_rgb", "velocity"))
    assert set(cfg.images) == {"above_rgb", "above_depth", "view_rgb", "view_depth"}
    assert cfg.views() == (
        View("above", 16, 16, rgb=True, depth=False),
        View("view", 8, 12, rgb=False, depth=True),
    )
    env = make(observation=layout("velocity", "above_depth"))
    assert env.cameras.views == (View("above", 16, 16, rgb=False, depth=True),)
    assert set(env.current().keys()) & set(env.cfg.images) == {"above_depth"}
    blind = make(observation=layout("velocity"))
    assert blind.cameras.renderer is None and blind.images() == {}


def counted(env):
    """Count how often an environment renders."""
    calls, render = [], env.cameras.renderer.render
    env.cameras.renderer.render = lambda: calls.append(env.world.control_steps) or render()
    return calls


def test_every_step_renders_once_and_the_true_last_image_costs_a_second_time_at_ends():
    exact, quick = make(episode_length=3), make(episode_length=3, final_images=False)
    once, twice = counted(quick), counted(exact)
    for _ in range(7):
        go(exact, *FAR), go(quick, *FAR)
    assert once == [1, 2, 3, 4, 5, 6, 7]
    assert twice == [1, 2, 3, 3, 4, 5, 6, 6, 7]


def test_images_are_those_of_the_current_observation():
    env = make()
    _, root = go(env, *FAR)
    images = env.images()
    assert set(images) == {"above_rgb", "above_depth"}
    for name, value in images.items():
        assert torch.equal(value, root[name])


def test_images_of_different_steps_share_no_memory():
    for final in (True, False):
        env = make(final_images=final)
        kept = [go(env, *(0.1 * k - x for x in FAR))[0]["next"] for k in range(4)]
        for k, td in enumerate(kept):
            for i, x in enumerate(FAR):
                image = expected(0.1 * k - x)
                torch.testing.assert_close(td["above_depth"][i], image, atol=1e-4, rtol=0.0)
        for name in ("above_rgb", "above_depth"):
            assert len({td[name].data_ptr() for td in kept}) == 4


# The end of an episode.


def ends(final_images, **config):
    """A step that ends two of four episodes: the transition, the next root, the new places."""
    env = make(final_images=final_images, episode_length=3, **config)
    go(env, *FAR), go(env, *FAR)
    env.step_count[:] = torch.tensor([2, 0, 2, 0])
    transition, root = go(env, *FAR)
    assert transition["next", "truncated"][:, 0].tolist() == [True, False, True, False]
    return transition["next"], root, env.sim.data.qpos[:, 0].tolist()


def test_next_shows_the_true_last_images_and_the_root_those_of_the_new_episode():
    after, root, places = ends(True)
    for i, (last, new) in enumerate(zip(FAR, places, strict=True)):
        torch.testing.assert_close(after["above_depth"][i], expected(last), atol=1e-4, rtol=0.0)
        torch.testing.assert_close(root["above_depth"][i], expected(new), atol=1e-4, rtol=0.0)
        assert (last == new) is (i in (1, 3))
    assert not torch.equal(after["above_rgb"][0], root["above_rgb"][0])
    assert torch.equal(after["above_rgb"][1], root["above_rgb"][1])


def test_without_final_images_next_shows_the_new_episode_and_its_numbers_the_last():
    after, root, places = ends(False)
    for i, new in enumerate(places):
        for td in (after, root):
            torch.testing.assert_close(td["above_depth"][i], expected(new), atol=1e-4, rtol=0.0)
    assert after["teacher"][:, 0].tolist() == pytest.approx(FAR)
    assert root["teacher"][:, 0].tolist() == pytest.approx(places)


@pytest.mark.parametrize(
    "terms",
    [
        {},
        {"above_depth": ObsTerm(delay=(1, 1), history=2)},
        {"latency": {"student": Latency(weights=[1.0, 1.0, 1.0])}},
        {"latency": {"student": Latency(weights=[1.0, 1.0, 1.0], every_step=False)}},
    ],
    ids=["plain", "stacked", "late", "late for an episode"],
)
def test_final_images_change_nothing_but_the_images_of_last_steps(terms):
    latency = terms.get("latency", {})
    terms = {name: term for name, term in terms.items() if name != "latency"}
    observation = layout("velocity", "above_depth", **terms)
    config = {"observation": observation, "latency": latency, "episode_length": 4}
    exact, quick = (make(final_images=final, **config) for final in (True, False))
    actions = 2 * torch.rand(13, 4, 1, generator=seeded(3)) - 1
    ended = 0
    for action in actions:
        a, b = (e.step_and_maybe_reset(e.current().set("action", action)) for e in (exact, quick))
        done = a[0]["next", "done"][:, 0]
        for one, other in zip(a, b, strict=True):
            for key in one.keys(True, True):
                rows = ~done if key == ("next", "above_depth") else everyone(4)
                assert torch.equal(one[key][rows], other[key][rows]), key
        ended += int(done.sum())
    assert ended == 12


def test_after_a_restart_no_image_of_the_last_episode_shows():
    late = {"latency": {"student": Latency(weights=[0.0, 0.0, 0.0, 1.0])}}
    observation = layout("velocity", above_depth=ObsTerm(delay=(2, 2), history=3))
    for final in (True, False):
        _, root, places = ends(final, observation=observation, **late)
        for i in (0, 2):
            for image in root["above_depth"][i]:
                torch.testing.assert_close(image, expected(places[i]), atol=1e-4, rtol=0.0)
        assert not (root["above_depth"][1, 0] == root["above_depth"][0, 0]).all()


@pytest.mark.parametrize("final", [True, False])
def test_numbers_and_images_arrive_equally_late_at_every_step(final):
    env = make(
        num_envs=6,
        final_images=final,
        observation=layout("position", "above_depth"),
        latency={"student": Latency(weights=[1.0, 1.0, 1.0, 1.0])},
        episode_length=1000,
    )
    lateness = set()
    for step in range(12):
        x = -1.5 + 0.25 * step  # a pixel further
        after = go(env, *[x] * 6)[0]["next"]
        said, shown = after["student"][:, 0], seen_at(after["above_depth"])
        if step >= 4:
            assert torch.equal(shown, torch.stack([seen_at(expected(s)) for s in said]))
            lateness |= set(((x - said) / 0.25).round().long().tolist())
    assert lateness == {0, 1, 2, 3}


@pytest.mark.parametrize("final", [True, False])
def test_a_latency_that_is_drawn_at_resets_is_another_in_the_next_episode(final):
    env = make(
        num_envs=40,
        final_images=final,
        observation=layout("position"),
        latency={"student": Latency(weights=[1.0, 1.0, 1.0], every_step=False)},
        episode_length=6,
    )
    late = []
    for step in range(12):
        x = -1.5 + 0.25 * step
        said = go(env, *[x] * 40)[0]["next", "student"][:, 0]
        late.append(((x - said) / 0.25).round())
    for first in (3, 9):
        assert all(torch.equal(late[first], late[first + k]) for k in (1, 2))
        assert set(late[first].tolist()) == {0.0, 1.0, 2.0}
    assert 0.35 < (late[3] != late[9]).float().mean() < 0.95  # 2/3 expected, sd 0.075


# Faults.


@pytest.mark.parametrize("final", [True, False])
def test_a_faulty_step_shows_no_image_of_what_went_wrong(final):
    env = make(final_images=final)
    _, root = go(env, *FAR)
    place(env, *FAR)
    env.sim.data.qpos[2, 0] = NAN
    action = torch.zeros(4, 1)
    transition, after = env.step_and_maybe_reset(env.current().set("action", action))
    assert transition["next", "fault"][:, 0].tolist() == [False, False, True, False]
    x = env.sim.data.qpos[2, 0].item()
    shown = root["above_depth"][2] if final else expected(x)
    torch.testing.assert_close(transition["next", "above_depth"][2], shown, atol=1e-4, rtol=0.0)
    torch.testing.assert_close(after["above_depth"][2], expected(x), atol=1e-4, rtol=0.0)
    for i in (0, 1, 3):
        torch.testing.assert_close(after["above_depth"][i], expected(FAR[i]), atol=1e-4, rtol=0.0)


# The hold-out.


def test_objects_are_absent_as_often_as_asked_and_then_out_of_sight():
    env = make(num_envs=500, absent_object=0.3, observation=layout("velocity"))
    absent = env.current()["is_absent"][:, 0]
    assert 105 <= absent.sum() <= 195  # 150 expected, sd 10
    away = env.sim.data.qpos[:, 0] == AWAY
    assert torch.equal(away, absent) and torch.equal(env.task.memory["is_absent"], absent)
    few = make(num_envs=8, absent_object=0.5)
    shown = few.current()
    for i, is_absent in enumerate(shown["is_absent"][:, 0].tolist()):
        assert (shown["above_depth"][i] == 0).all().item() is is_absent
    assert 0 < shown["is_absent"].sum() < 8


def test_what_is_absent_is_drawn_at_every_reset_and_stays_so_for_the_episode():
    env = make(num_envs=64, absent_object=0.5, episode_length=3, observation=layout("velocity"))
    roots, nexts = [env.current()["is_absent"]], []
    for _ in range(12):
        transition, root = env.step_and_maybe_reset(env.current().set("action", torch.zeros(64, 1)))
        nexts.append(transition["next", "is_absent"])
        roots.append(root["is_absent"])
    for step, (before, after) in enumerate(zip(roots, nexts, strict=False)):
        assert torch.equal(before, after)  # the last step is of the old episode
        changed = (roots[step + 1] != before).sum()
        if step % 3 == 2:
            assert 12 <= changed <= 52  # 32 expected, sd 4
        else:
            assert changed == 0


def test_a_partial_reset_changes_nothing_elsewhere():
    env = make(num_envs=40, absent_object=0.5, observation=layout("velocity"))
    before, mask = env.current()["is_absent"][:, 0], torch.arange(40) < 20
    place(env, *[0.5] * 40)
    env.reset(env.current().set("_reset", mask[:, None]))
    after, x = env.current()["is_absent"][:, 0], env.sim.data.qpos[:, 0]
    assert torch.equal(before[~mask], after[~mask]) and before[~mask].any()
    assert (x[~mask] == 0.5).all()
    assert (before[mask] != after[mask]).any() and torch.equal(x[mask] == AWAY, after[mask])


def test_episodes_with_nothing_in_sight_do_not_enter_the_statistics():
    env = make(num_envs=64, absent_object=0.5, episode_length=3, observation=layout("velocity"))
    shown = ~env.current()["is_absent"][:, 0]
    assert 0 < shown.sum() < 64
    for _ in range(3):  # those in sight succeed, the others are out of reach
        go(env, *torch.where(shown, 0.0, AWAY).tolist())
    metrics = env.metrics()
    assert metrics["env/num_trajectories"] == shown.sum()
    assert metrics["env/success_once"] == 1.0
    # near is 1 at the middle, and 1 - AWAY where nothing counts
    assert metrics["reward/near"] == pytest.approx(3.0, abs=1e-6)


def test_without_absent_objects_nothing_is_away_and_nothing_says_so():
    env = make()
    assert "is_absent" not in {*env.current().keys(), *env.observation_spec.keys()}
    assert (env.sim.data.qpos[:, 0].abs() <= 1.0).all()


def test_a_task_that_has_no_object_to_remove_refuses_with_the_remedy():
    with pytest.raises(
        ValueError, match=r"Cart has no object to remove: set algo\.absent_object=0"
    ):
        Env(toy.Cart(toy.Config()), 2, absent_object=0.5)


# Specs and state.


@pytest.mark.parametrize("absent_object", [0.0, 0.5])
def test_torchrl_accepts_the_specs_of_images(absent_object):
    observation = layout(
        "velocity", "above_rgb", above_depth=ObsTerm(history=2), view_rgb=ObsTerm(delay=(0, 2))
    )
    env = make(
        num_envs=3,
        observation=observation,
        absent_object=absent_object,
        episode_length=5,
        latency={"student": Latency()},
    )
    check_env_specs(env, seed=3)
    spec = env.observation_spec
    assert (spec["above_rgb"].dtype, spec["above_rgb"].shape) == (torch.uint8, (3, 16, 16, 3))
    assert (spec["above_depth"].dtype, spec["above_depth"].shape) == (
        torch.float32,
        (3, 2, 16, 16),
    )
    assert spec["view_rgb"].shape == (3, 8, 12, 3)
    assert ("is_absent" in set(spec.keys())) is (absent_object > 0)


@pytest.mark.parametrize("final", [True, False])
def test_a_restored_environment_with_images_continues_bit_for_bit(final):
    config = {
        "observation": layout(
            "position", "above_rgb", above_depth=ObsTerm(delay=(0, 2), history=2)
        ),
        "latency": {"student": Latency(weights=[1.0, 1.0, 1.0])},
        "episode_length": 5,
        "randomize": True,
        "absent_object": 0.5,
        "stagger": True,
        "final_images": final,
    }
    env, other = make(seed=1, **config), make(seed=2, **config)

    def drive(each, steps, seed):
        actions = 2 * torch.rand(steps, 4, 1, generator=seeded(seed)) - 1
        return torch.stack(
            [each.step_and_maybe_reset(each.current().set("action", a))[0] for a in actions]
        )

    drive(env, 7, 1), drive(other, 3, 2)
    state = env.state_dict()
    assert {"last/above_rgb", "last/above_depth", "is_absent", "terms/late/student"} <= set(state)
    assert state["last/above_rgb"].dtype == torch.uint8
    first = drive(env, 16, 3)
    former = {k.replace("is_absent", "hidden"): v for k, v in state.items()}
    assert {"hidden", "memory/hidden"} <= set(former)
    other.load_state_dict(former if final else state)  # an older checkpoint's names
    second = drive(other, 16, 3)
    for key in first.keys(True, True):
        assert torch.equal(first[key], second[key]), key
    absent = first["is_absent"][..., 0]
    assert absent.any() and not absent.all() and (absent[0] != absent[-1]).any()
    colours = first["above_rgb"][..., 0].amax(dim=(2, 3))
    assert len(colours.unique()) > 4  # the sign's red, drawn at every reset
    assert (first["next", "above_depth"] == DEPTH).any()


def test_the_card_says_how_to_make_each_image_from_what_a_camera_gives():
    env = make(observation=layout("velocity", "above_rgb", "view_depth"))
    facts = {"task": "t", "run": "r", "network": {}, "score": {}, "versions": {}}
    assert env.card(in_keys=("teacher",), **facts).preprocessing == {}
    said = env.card(in_keys=("student", "above_rgb", "view_depth"), **facts).preprocessing
    assert set(said) == {"above_rgb", "view_depth"}
    for word in ("RGB", "16:16", "90 degrees", "average down to 16 x 16"):
        assert word in said["above_rgb"]
    for word in ("metres", "12:8", "45 degrees", "nearest of 12 x 8"):  # 45 is MuJoCo's own
        assert word in said["view_depth"]


# Configuration.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": {"c": Camera(0, 8)}}, r"cameras\.c must have at least one pixel, got 0 x 8"),
        (
            {"cameras": {"c": Camera()}, "observation": {"g": {"c_rgb": ObsTerm(noise=0.1)}}},
            r"observation\.g\.c_rgb\.noise: images get theirs from algo\.augment",
        ),
        ({"latency": {"h": Latency()}}, r"latency\.h: there is no such group in .*\['teacher'\]"),
        ({"latency": {"teacher": Latency(weights=[])}}, r"latency\.teacher\.weights must be odds"),
        ({"latency": {"teacher": Latency(weights=[0.0, 0.0])}}, r"weights must be odds >= 0"),
        ({"latency": {"teacher": Latency(weights=[1.0, -0.1])}}, r"weights must be .*-0\.1\]"),
    ],
)
def test_a_config_refuses_invalid_values(settings, message):
    observation = {"teacher": {name: ObsTerm() for name in NUMBERS}}
    with pytest.raises(ValueError, match=message):
        TaskConfig(**{"observation": observation, **settings})


def test_an_unknown_camera_names_those_of_the_model():
    observation = layout("velocity", "below_rgb")
    with pytest.raises(ValueError, match=r"no camera 'below'.*\['view', 'above'\]"):
        make(observation=observation, cameras={"below": Camera()})


def test_an_image_of_a_camera_that_is_not_configured_is_an_unknown_term():
    with pytest.raises(ValueError, match=r"observation\.student asks for \['above_rgb'\]"):
        make(observation=layout("velocity", "above_rgb"), cameras={})


def test_the_task_of_these_tests_is_the_one_that_can_be_loaded():
    assert load_task("tests.support.watched") is watched.WatchedCart
