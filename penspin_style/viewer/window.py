"""A window to watch a policy in."""

import time

import torch

from penspin_style.env.env import Env
from penspin_style.train.evaluate import Act


def play_window(env: Env, act: Act) -> None:
    """Show an environment in MuJoCo's viewer, in real time, until the window is closed."""
    import mujoco.viewer

    data = mujoco.MjData(env.model)
    root = env.current()
    with mujoco.viewer.launch_passive(env.model, data) as viewer, torch.no_grad():
        while viewer.is_running():
            began = time.perf_counter()
            root.set("action", act(root))
            _, root = env.step_and_maybe_reset(root)
            for name in ("qpos", "qvel", "mocap_pos", "mocap_quat"):
                if getattr(data, name).size:
                    getattr(data, name)[:] = env.sim.data[name][0].cpu().numpy()
            mujoco.mj_forward(env.model, data)
            viewer.sync()
            time.sleep(max(0.0, env.cfg.control_dt - (time.perf_counter() - began)))
