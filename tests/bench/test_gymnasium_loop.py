"""The programme that measures a task beside a plain Gymnasium loop."""

import mujoco
import numpy as np
import pytest

from scripts.bench_gymnasium import Plain, draw, measure

MODEL = """
<mujoco><option timestep=".01"/><worldbody><body>
  <joint name="slide" type="slide" axis="1 0 0"/><geom size=".1" mass="1"/>
</body></worldbody>
<actuator><position joint="slide" kp="10" ctrlrange="-1 3"/></actuator></mujoco>"""


def test_the_loop_simulates_what_it_says():
    env = Plain(mujoco.MjModel.from_xml_string(MODEL), 5, episode_length=3)
    seen, _ = env.reset()
    np.testing.assert_array_equal(seen, [0.0, 0.0])
    data = mujoco.MjData(env.model)
    data.ctrl[0] = 1.0 + 0.2  # the range's middle, and a twentieth of it
    mujoco.mj_step(env.model, data, 5)
    seen, _, _, truncated, _ = env.step(np.array([2.0]))  # clipped to 1
    np.testing.assert_allclose(seen, [data.qpos[0], data.qvel[0]], rtol=1e-6)
    assert not truncated and [env.step(np.zeros(1))[3] for _ in range(2)] == [False, True]


def test_rates_are_over_the_loops_of_the_same_round(tmp_path):
    rows = measure(["task=panda_lift_cube", "sim.nthread=1"], [2, 4], rounds=1)
    assert [row.get("num_envs") for row in rows] == [None, 2, 4]
    assert rows[0]["ratio"] == [1.0] * 3
    for row in rows[1:]:
        assert row["ratio"][0] == pytest.approx(row["per_s"][0] / rows[0]["per_s"][0], abs=0.01)
    draw(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5_000
