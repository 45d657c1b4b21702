"""Honest ratios of rendering: our call against bare MuJoCo Warp, on the same scene, alternating.

Both draw the same environments of a task after some random actions. The bare engine has the same
settings, its own textures, and runs as a captured graph, which is the fastest way to call it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mujoco_warp as mjw
import torch
import warp as wp

from penspin_style.bench.alternate import alternate, make_env, report
from penspin_style.config import TrainConfig
from penspin_style.env.task import Task
from penspin_style.render.renderer import View, make_renderer
from penspin_style.render.warp_renderer import LOOKS, POSES, context_settings
from penspin_style.sim.sim import Sim
from penspin_style.sim.warp_sim import WarpSim

_WARM_STEPS = 5  # random actions before anything is drawn


def render(
    cfg: TrainConfig,
    task: type[Task[Any]],
    views: Sequence[View] = (),
    *,
    rounds: int,
    steps: int,
) -> dict[str, Any]:
    """Return frames/s of `Renderer.render` over those of the bare engine; a frame is one view.

    `ratio` is ours over theirs with one thread each, as Warp has no more than one on a CPU;
    `threads_ratio` is ours with all threads over the same. steps: calls of each measurement.
    views: what to draw; the task's own by default.

    Raises:
        ValueError: no views are given and the task has none.
    """
    views = tuple(views) or cfg.task.views()
    if not views:
        raise ValueError("the task draws nothing: list images in an observation group")
    env = make_env(cfg, task)
    root = env.current()
    for _ in range(_WARM_STEPS):
        action = torch.rand(env.action_spec.shape, generator=env.rng, device=env.rng.device)
        root.set("action", (2.0 * action - 1.0).to(env.device))
        root = env.step_and_maybe_reset(root)[1]
    calls: dict[str, Callable[[], object]] = {
        "render": make_renderer(env.sim, views, nthread=1).render,
        "threads": make_renderer(env.sim, views).render,
        "bare": bare(env.sim, views)[0],
    }
    contenders = {name: lambda _, call=call: call() for name, call in calls.items()}

    def wait() -> None:
        if env.sim.device.type == "cuda":
            torch.cuda.synchronize(env.sim.device)
            wp.synchronize_device(wp.device_from_torch(env.sim.device))

    speeds = alternate(contenders, rounds, steps, prepare=wait, finish=wait)
    ratios = {"ratio": ("render", "bare"), "threads_ratio": ("threads", "bare")}
    return {
        "views": len(views),
        **report(cfg, speeds, ratios, per_env=len(views), unit="frames_"),
    }


def bare(sim: Sim, views: Sequence[View]) -> tuple[Callable[[], object], mjw.RenderContext]:
    """Return a call of MuJoCo Warp alone, on a copy of poses and of what differs, and its context.

    The context holds what was drawn.
    """
    device = wp.device_from_torch(sim.device)
    with wp.ScopedDevice(device):
        if isinstance(sim, WarpSim):
            m, d = sim.m, sim.d
        else:
            looks = [name for name in LOOKS if name in sim.params and sim.params[name].numel()]
            m = mjw.put_model(sim.model, batch_sizes=dict.fromkeys(looks, sim.num_envs))
            d = mjw.make_data(sim.model, sim.num_envs)
            for owner, fields, names in ((d, sim.data, POSES), (m, sim.params, looks)):
                for name in names:
                    getattr(owner, name).assign(fields[name].cpu().numpy())
        settings = context_settings(sim, views)
        if "cam_fovy" in sim.params:
            settings["use_precomputed_rays"] = False
        context = mjw.create_render_context(sim.model, sim.num_envs, **settings)

        def draw() -> None:
            mjw.refit_bvh(m, d, context)
            mjw.render(m, d, context)

        draw()
        with wp.ScopedCapture() as capture:
            draw()
    graph: Any = capture.graph
    owned = (m, d, context)

    def replay() -> object:
        wp.capture_launch(graph)
        return owned

    return replay, context
