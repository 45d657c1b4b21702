"""What the randomisation table draws, for whom and when, and which objects a row names."""

import math

import mujoco
import pytest
import torch

from penspin_style.sim.randomize import Randomize, per_env_fields
from tests.support import scenes
from tests.support.randomized import (
    CART,
    CRATE,
    MANY,
    MODEL,
    everyone,
    make,
    ready,
    restart,
    same,
    seeded,
    unlike,
)

# What is drawn.


def draws(count=4000, **row):
    """Masses of the crate (whose own is 3), one per environment, from one draw."""
    sim, _ = ready(Randomize("body_mass", "crate", **row), num_envs=count)
    return sim.params.body_mass[:, CRATE]


def test_uniform_draws_lie_in_their_range_with_its_moments():
    x = draws(low=2.0, high=5.0)
    assert x.min() >= 2.0 and x.max() <= 5.0
    assert x.mean().item() == pytest.approx(3.5, abs=4 * 3 / 12**0.5 / 4000**0.5)
    assert x.var().item() == pytest.approx(9 / 12, rel=0.06)
    assert torch.histc(x, 3, 2, 5).tolist() == pytest.approx([4000 / 3] * 3, abs=130)


def test_log_uniform_draws_are_uniform_in_the_logarithm():
    x = draws(low=0.1, high=10.0, distribution="log_uniform")
    assert x.min() >= 0.1 * (1 - 1e-9) and x.max() <= 10.0
    logs = x.log10()
    assert logs.mean().item() == pytest.approx(0.0, abs=4 * 2 / 12**0.5 / 4000**0.5)
    assert logs.var().item() == pytest.approx(4 / 12, rel=0.06)
    assert torch.histc(logs, 4, -1, 1).tolist() == pytest.approx([1000] * 4, abs=110)


def test_gaussian_draws_have_the_given_mean_and_deviation():
    x = draws(low=10.0, high=0.5, distribution="gaussian")
    assert x.mean().item() == pytest.approx(10.0, abs=4 * 0.5 / 4000**0.5)
    assert x.std().item() == pytest.approx(0.5, rel=0.05)
    within = ((x - 10.0).abs() < 0.5).double().mean().item()
    assert within == pytest.approx(math.erf(0.5**0.5), abs=0.03)


@pytest.mark.parametrize(
    ("operation", "low", "high", "bounds"),
    [("abs", 2.0, 5.0, (2.0, 5.0)), ("scale", 0.5, 2.0, (1.5, 6.0)), ("add", -1, 2, (2.0, 5.0))],
)
def test_operations_start_from_the_models_own_value_at_every_draw(operation, low, high, bounds):
    sim, randomizer = make(Randomize("body_mass", "crate", low, high, operation), num_envs=50)
    rng, before = seeded(), None
    for _ in range(30):
        restart(sim, randomizer, rng)
        mass = sim.params.body_mass[:, CRATE].clone()
        assert mass.min() >= bounds[0] and mass.max() <= bounds[1]
        assert before is None or (mass != before).all()
        before = mass
    ratio = sim.params.body_inertia[:, CRATE] / mass[:, None]
    same(ratio, ratio[:1].expand(50, 3))


@pytest.mark.parametrize(
    ("row", "spread"),
    [
        (Randomize("geom_size", "ball", 0.5, 2.0, "scale"), (0.05, 0.2)),
        (Randomize("dof_damping", "rail", 0.5, 2.0, "scale", when="interval", interval=0.05), None),
        (Randomize("opt.gravity", low=-1, high=1, operation="add", column=2), (-11.0, -9.0)),
    ],
)
def test_no_field_accumulates(row, spread):
    sim, randomizer = make(row)
    rng = seeded()
    for step in range(60):
        randomizer.interval(step, rng)
        restart(sim, randomizer, rng)
        drawn = sim.params[row.field]
        if row.field == "geom_size":
            drawn = drawn[:, MODEL.geom("ball").id, 0]
        elif row.field == "opt.gravity":
            drawn = drawn[:, 2]
        else:
            drawn, spread = drawn[:, 0], (1.0, 4.0)
        assert drawn.min() >= spread[0] and drawn.max() <= spread[1]


def test_state_noise_does_not_accumulate_over_resets():
    sim, randomizer = make(Randomize("qpos", "rail", -0.1, 0.1, "add"))
    for _ in range(50):
        restart(sim, randomizer, seeded())
        sim.step(3)
    restart(sim, randomizer, seeded())
    assert sim.data.qpos[:, 0].abs().max() <= 0.1


def test_each_matched_value_has_a_draw_of_its_own_unless_shared():
    own = Randomize("geom_friction", "puck|ball", 0.1, 2.0, column=slice(0, 2))
    common = Randomize("geom_friction", "puck|ball", 0.1, 2.0, column=slice(0, 2), shared=True)
    ids = [MODEL.geom("puck").id, MODEL.geom("ball").id]
    for row in (own, common):
        sim, _ = ready(row)
        drawn = sim.params.geom_friction[:, ids, :2].reshape(5, -1)
        assert unlike(drawn[:, 0])
        assert all(unlike(values) is not row.shared for values in drawn)
        if row.shared:
            assert (drawn == drawn[:, :1]).all()


def test_shared_scale_keeps_the_proportions_of_a_shape():
    sim, _ = ready(Randomize("geom_size", "crate", 0.5, 2.0, "scale", shared=True))
    size = sim.params.geom_size[:, MODEL.geom("crate").id]
    same(size / size[:, :1], torch.tensor([[1.0, 2.0, 3.0]]).double().expand(5, 3))
    assert unlike(size[:, 0])


# Who is drawn, and when.


def test_only_the_masked_environments_are_drawn_again():
    sim, randomizer = ready(*MANY, model=scenes.gripper(), num_envs=6)
    before = {name: sim.params[name].clone() for name in dir(sim.params)}
    mask = torch.tensor([True, False, False, True, False, True])
    restart(sim, randomizer, seeded(9), mask)
    for name, value in before.items():
        assert torch.equal(sim.params[name][~mask], value[~mask]), name
        if name != "opt.wind":
            changed = (sim.params[name] != value).flatten(1).any(dim=1)
            assert changed[mask].all(), name


def test_each_time_of_drawing_draws_only_its_own_rows():
    rows = (
        Randomize("body_mass", "crate", 1.0, 2.0, when="startup"),
        Randomize("dof_damping", "rail", 1.0, 2.0, when="reset"),
        Randomize("dof_armature", "rail", 1.0, 2.0, when="interval", interval=0.1),
        Randomize("qvel", "rail", 1.0, 2.0, when="reset"),
        Randomize("xfrc_applied", "crate", 1.0, 2.0, when="interval", interval=0.2),
    )
    sim, randomizer = make(*rows)

    def values():
        return {
            "mass": sim.params.body_mass[0, CRATE].item(),
            "damping": sim.params.dof_damping[0, 0].item(),
            "armature": sim.params.dof_armature[0, 0].item(),
            "qvel": sim.data.qvel[0, 0].item(),
            "push": sim.data.xfrc_applied[0, CRATE, 0].item(),
        }

    def changes(action):
        before = values()
        action()
        after = values()
        return {name for name in after if after[name] != before[name]}

    rng, all_ = seeded(), everyone(sim)
    assert changes(lambda: randomizer.startup(rng)) == {"mass"}
    assert changes(lambda: randomizer.reset_model(all_, rng)) == {"damping"}
    assert changes(lambda: randomizer.reset_state(all_, rng)) == {"qvel"}
    due = [changes(lambda: randomizer.interval(step, rng)) for step in range(9)]  # noqa: B023
    armature, both = {"armature"}, {"armature", "push"}
    assert due == [both, set(), armature, set(), both, set(), armature, set(), both]


def test_the_same_generator_gives_the_same_draws():
    def drawn(seed):
        sim, randomizer = make(*MANY, model=scenes.gripper(), num_envs=3)
        restart(sim, randomizer, seeded(seed))
        return torch.cat([sim.params[name].double().flatten() for name in dir(sim.params)])

    first = drawn(1)
    assert torch.equal(first, drawn(1))
    assert not torch.equal(first, drawn(2))


def test_draws_depend_on_nothing_but_the_generator():
    torch.manual_seed(0)
    first = draws(20, low=1.0, high=2.0)
    torch.manual_seed(1)
    assert torch.equal(first, draws(20, low=1.0, high=2.0))


# Which objects.


def test_a_name_must_match_whole_and_several_may():
    sim, _ = ready(Randomize("body_mass", "c.*", 7.0, 8.0))
    changed = (sim.params.body_mass >= 7.0).all(dim=0).nonzero().flatten().tolist()
    assert changed == [CART, CRATE]
    for part in ("rat", "cra"):
        with pytest.raises(ValueError, match=f"no name matches '{part}'"):
            make(Randomize("body_mass", part, 1.0, 2.0))


def test_joint_names_select_all_coordinates_of_their_joint():
    for field, joint, width in (("qpos", "crate", 7), ("qvel", "crate", 6), ("qvel", "rail", 1)):
        sim, _ = ready(Randomize(field, joint, 5.0, 6.0))
        drawn = sim.data[field] >= 5.0
        start = getattr(MODEL.joint(joint), {"qpos": "qposadr", "qvel": "dofadr"}[field])[0]
        expected = list(range(start, start + width))
        if field == "qvel":
            assert drawn.all(dim=0).nonzero().flatten().tolist() == expected
        assert drawn[:, expected].all()


def test_a_name_that_matches_nothing_lists_what_there_is():
    with pytest.raises(ValueError, match=r"no name matches 'lid'.*'cart', 'crate', 'puck', 'ball'"):
        make(Randomize("body_mass", "lid", 1.0, 2.0))
    with pytest.raises(ValueError, match=r"'knee'; there are \['rail', 'crate', 'puck', 'ball'\]"):
        make(Randomize("dof_damping", "knee", 1.0, 2.0))
    with pytest.raises(ValueError, match=r"there are \['servo', 'spare'\]"):
        make(Randomize("ctrl", "motor", 1.0, 2.0))


def test_equality_constraints_are_named_too():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><body name="a"><joint name="x"/><joint name="y" axis="0 1 0"/>'
        '<geom size=".1"/></body></worldbody><equality><joint name="e0" joint1="x"/>'
        '<joint name="e1" joint1="y"/><joint name="e2" joint1="x" joint2="y"/></equality></mujoco>'
    )
    sim, _ = ready(Randomize("eq_active", "e2"), model=model)
    assert sim.data.eq_active[0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Randomize("time", low=0.0, high=1.0), "names select objects of body_"),
        (Randomize("geom_friction", "puck", column=3, high=1.0), r"column 3 is not in 0\.\.2"),
        (Randomize("geom_friction", "puck", column=slice(3, 5), high=1.0), "is not in"),
        (Randomize("opt.gravity", column=7), r"column 7 is not in 0\.\.2"),
        (Randomize("body_mass", "puck", column=0, high=1.0), "there is one number per object"),
    ],
)
def test_a_row_that_selects_nothing_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        make(row)


def test_a_misspelt_field_is_refused_with_the_nearest():
    with pytest.raises(Exception, match="body_mas"):
        make(Randomize("body_mas", "crate"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"operation": "multiply"}, "operation must be one of"),
        ({"distribution": "normal"}, "distribution must be one of"),
        ({"when": "never"}, "when must be one of"),
        ({"low": 2.0, "high": 1.0}, "high 1.0 is below low 2.0"),
        ({"high": -1.0, "distribution": "gaussian"}, "standard deviation"),
        ({"low": 0.0, "high": 1.0, "distribution": "log_uniform"}, "needs low > 0"),
        ({"when": "interval"}, "needs interval > 0"),
    ],
)
def test_a_row_that_means_nothing_is_refused(values, message):
    with pytest.raises(ValueError, match=rf"Randomize\(body_mass\): .*{message}"):
        Randomize("body_mass", **values)


def test_a_state_drawn_at_startup_would_be_lost_and_is_refused():
    with pytest.raises(ValueError, match="the first reset overwrites"):
        Randomize("qpos", when="startup", high=1.0)


def test_mass_brings_inertia_among_the_fields_of_an_environment():
    rows = (*MANY[:2], Randomize("body_mass", "hand", 1, 2), Randomize("qpos", "wrist"))
    assert per_env_fields(rows) == ("body_mass", "geom_friction", "body_inertia")
