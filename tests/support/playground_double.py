"""What stands for the package `mujoco_playground`: one environment whose numbers are known by hand.

A cart at x, which starts in [0, 0.2), goes 0.25 with a full action and ends beyond 1; its second
number counts steps, the reward is x.
"""

import dataclasses
import math
import pathlib
import sys
import tempfile
import types
from typing import Any

import jax
import mujoco

jnp = jax.numpy

XML = """
<mujoco><option timestep="0.05"/>
  <worldbody><camera name="side" pos="0 -3 1" xyaxes="1 0 0 0 .3 1"/>
    <body><joint name="rail" type="slide" axis="1 0 0"/><geom size=".1"/></body></worldbody>
  <actuator><motor name="push" joint="rail"/></actuator>
</mujoco>
"""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    qpos: Any
    qvel: Any
    impl: Any = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    data: Any
    obs: Any
    reward: Any
    done: Any
    metrics: dict
    info: dict

    def replace(self, **changes):
        return dataclasses.replace(self, **changes)


class Walk:
    action_size, xml_path, model_assets = 1, "", None

    def __init__(self, config):
        self.config, self.dt, self.sim_dt = config, config["ctrl_dt"], 0.05
        self.mj_model = mujoco.MjModel.from_xml_string(XML)
        file = pathlib.Path(tempfile.gettempdir()) / "playground_double.xml"
        file.write_text(XML)
        self.xml_path, self.model_assets = str(file), {}

    def observe(self, x):
        return x

    def reset(self, rng):
        x = 0.2 * jax.random.uniform(rng, (2,)).at[1].set(0.0)
        data = Data(x[:1], jnp.zeros(1))
        info = {"rng": rng, "near": jnp.zeros((), bool), "small": jnp.zeros((), jnp.int8)}
        zero = jnp.zeros(())
        return State(data, self.observe(x), zero, zero, {"reward/x": zero}, info)

    def step(self, state, action):
        moved = 0.25 * self.config["speed"] * action
        x = state.data.qpos + moved
        seen = jnp.concatenate((x, self.steps(state) + 1.0))
        done = jnp.abs(x[0]) > 1.0  # not the type of reset's
        rng, key = jax.random.split(state.info["rng"])
        info = {**state.info, "rng": rng, "near": jax.random.bernoulli(key)}
        data = Data(x, moved / self.dt)
        return state.replace(
            data=data,
            obs=self.observe(seen),
            reward=x[0],
            done=done,
            info=info,
            metrics={"reward/x": x[0]},
        )

    def steps(self, state):
        return state.obs[1:]


class Asymmetric(Walk):
    def observe(self, x):
        return {"state": x[:1], "privileged_state": x, "other": x}

    def steps(self, state):
        return state.obs["privileged_state"][1:]


class Pixels(Walk):
    def observe(self, x):
        return {"pixels": jnp.zeros((4, 4, 3))}


class Broken(Walk):
    def __init__(self, config):
        raise FileNotFoundError("no mesh leg.obj\nand more")


class Config(dict):
    def to_dict(self):
        return self


KINDS = {"Walk": Walk, "Asymmetric": Asymmetric, "Pixels": Pixels, "Broken": Broken}


def _default(name):
    return Config(
        *({"ctrl_dt": 0.1, "sim_dt": 0.05, "episode_length": 12, "action_repeat": 1},),
        **{"impl": "warp", "speed": 1.0, "limit": math.inf, "scales": {"x": (1.0, 2.0)}},
    )


def _load(name, config_overrides):
    config = _default(name)
    assert config_overrides["impl"] == "jax"
    unknown = {*config_overrides} - {*config, "scales.x"}
    if unknown:
        raise KeyError(f"no key {unknown}")
    return KINDS[name]({**config, **config_overrides})


def install(monkeypatch):
    """Let `import mujoco_playground` find the double."""
    package = types.ModuleType("mujoco_playground")
    package.registry = types.SimpleNamespace(  # type: ignore[attr-defined]
        ALL_ENVS=tuple(KINDS), get_default_config=_default, load=_load
    )
    monkeypatch.setitem(sys.modules, "mujoco_playground", package)
