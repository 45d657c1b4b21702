"""Students of a script, and of the network that reinforcement learning goes on with."""

import pytest
import torch

from penspin_style.algo.imitation import DistillConfig
from penspin_style.features import Feature, Input
from penspin_style.nets.gaussian import deviation
from tests.support.formula import BOTH, close, learn, make, root


def plain(**cfg):
    cfg = {"network": "gaussian", "activation": "elu", "beta_iterations": 0, **cfg}
    return make("expert", **cfg)


def scripted(seed=0):
    td = root(seed)
    return td.set("expert_action", 0.5 * td["student"][:, :2].clamp(-1.0, 1.0))


def test_the_label_is_what_the_script_would_do_and_no_teacher_is_opened():
    distill = plain()
    td = distill.act(scripted())
    assert distill.teacher is None and distill.teacher_card is None
    assert torch.equal(td["label"], scripted()["expert_action"])
    with torch.no_grad():
        close(td["action"], distill.policy.act(td["student"]))
    own = torch.full((6, 2), float("nan"))
    own[0, 1] = -0.25
    label = distill.act(scripted().set("task_label", own))["label"]
    expected = scripted()["expert_action"].clone()
    expected[0, 1] = -0.25
    assert torch.equal(label, expected)


def test_the_script_drives_at_first_where_it_is_told_to():
    distill = plain(beta_iterations=1)
    td = distill.act(scripted())
    assert torch.equal(td["action"], td["label"]) and (td["imitated"] > 0).all()


def test_noise_is_added_to_what_the_student_does_and_not_to_what_it_learns():
    noisy, quiet = (plain(action_noise=std) for std in (0.25, 0.0))
    n = 500
    tds = []
    for distill in (noisy, quiet):
        td = root(0, n)
        tds.append(distill.act(td.set("expert_action", torch.zeros(n, 2))))
    off = tds[0]["action"] - tds[1]["action"]
    assert off.std().item() == pytest.approx(0.25, abs=0.02)  # 1000 draws: sd 0.0056
    assert torch.equal(tds[0]["label"], tds[1]["label"])
    assert torch.equal(tds[0]["imitated"], tds[1]["imitated"])


def test_the_environment_is_asked_for_the_script_in_training_alone():
    for training in (True, False):
        settings = [
            plain().env_settings(DistillConfig(**cfg), training=training)
            for cfg in ({"teacher": "expert"}, {}, {"teacher": "expert", "rollouts": "rows"})
        ]
        assert [s["expert"] for s in settings] == [training, False, False]


def test_a_student_of_one_vector_learns_and_keeps_the_deviation_it_was_given():
    distill = plain(init_std=0.3, learning_rate=0.01, final_learning_rate=0.01)

    def batches(first):
        for k in range(first, first + 30):
            rows = [distill.act(scripted(k)) for _ in range(5)]
            for row in rows:
                row["next"] = row.select("fault").set("reward", torch.zeros(6, 1))
            distill.process(torch.stack(rows))
            yield distill.update()

    losses = [row["train/loss"] for row in batches(0)]
    assert losses[-1] < 0.3 * losses[0]
    close(deviation(distill.policy.raw_std), torch.full((2,), 0.3))
    assert distill.policy.describe() == {
        **{"kind": "gaussian", "in_key": "student", "hidden": [8], "activation": "elu"}
    }


def test_the_network_of_one_vector_refuses_several():
    image = Input("front_rgb", (Feature("front_rgb", (4, 4, 3), "1", "uint8"),))
    with pytest.raises(ValueError, match=r"algo\.network=gaussian reads one vector"):
        make("expert", network="gaussian", inputs=(*BOTH, image), reads=("student", "front_rgb"))


def test_a_trained_teacher_can_teach_that_network_too(teacher):
    distill = make(teacher, network="gaussian")
    assert learn(distill, 1)[0]["train/loss"] > 0


@pytest.mark.parametrize(
    ("key", "value", "legal"),
    [("action_noise", -0.1, "finite and >= 0"), ("init_std", 0.0, "finite and > 0")],
)
def test_settings_out_of_range_are_refused(key, value, legal):
    with pytest.raises(ValueError, match=f"algo.{key} must be {legal}, got {value}"):
        DistillConfig(**{key: value})
