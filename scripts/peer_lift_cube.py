#!/usr/bin/env python3
"""`panda_lift_cube` as one writes it for Gymnasium, and Stable-Baselines3 on it.

The same MJCF, observation, reward, controller and ends, one `MjData` in each process; without what
our task randomises. `scripts/bench_peers.py` starts it in an environment of its own, which needs
gymnasium, mujoco and stable-baselines3 and not penspin_style. Measured is what it is told to on
standard input, a word a line: `env` or `train`, answered by samples per second, or `success`: the
share of 100 episodes in which what `train` has learned so far ends with the cube lifted.
"""

import argparse
import importlib.metadata
import json
import pathlib
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import mujoco
import numpy as np

HALF, LIFT, MARGIN = 0.02, 0.2, 0.15  # m
HOME = np.array([0.0, -0.2245, 0.0, -2.4686, 0.0, 2.2441, np.pi / 4])
LOW, HIGH = np.array([0.25, -0.25, 0.014]), np.array([0.55, 0.25, 0.45])  # m, of the tool
DOWN = np.diag([1.0, -1.0, -1.0])
OPEN, SUBSTEPS = 0.04, 10
JOINT_NOISE, YAW = 0.05, 0.3  # rad
MOVE, GRIP, DAMPING, POSTURE = 0.025, 0.25, 0.05, 0.2
EVAL_SEED = 1_000_003  # no environment learns from it

Measurement = tuple[Callable[[], float], Callable[[], None]]


class LiftCube(gymnasium.Env):
    """One arm, one cube."""

    def __init__(self, path: str) -> None:
        self.model = mujoco.MjModel.from_xml_path(path)
        self.data = mujoco.MjData(self.model)
        self.site, self.box = self.model.site("gripper").id, self.model.body("box").id
        self.jac = np.zeros((6, self.model.nv))
        joint = self.model.joint("box")
        self.qpos_at, self.dof_at = int(joint.qposadr[0]), int(joint.dofadr[0])
        self.limits = self.model.actuator_ctrlrange
        self.target, self.opening = np.zeros(3), 1.0
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (22,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Put the arm near home and the cube somewhere on the floor."""
        super().reset(seed=seed)
        mujoco.mj_resetData(self.model, self.data)
        draw = self.np_random.uniform(-1.0, 1.0, 10)
        qpos, at = self.data.qpos, self.qpos_at
        qpos[:7], qpos[7:9] = HOME + JOINT_NOISE * draw[:7], OPEN
        qpos[at : at + 2] = 0.5 * (LOW + HIGH)[:2] + 0.5 * (HIGH - LOW)[:2] * draw[7:9]
        half = 0.5 * YAW * draw[9]
        qpos[at + 3 : at + 7] = np.cos(half), 0.0, 0.0, np.sin(half)
        self.data.ctrl[:7], self.data.ctrl[7] = HOME, OPEN
        return self.begin(), {}

    def begin(self) -> np.ndarray:
        """Return the first observation of the state that is there."""
        mujoco.mj_forward(self.model, self.data)
        self.target, self.opening = np.clip(self.data.site_xpos[self.site], LOW, HIGH), 1.0
        return self._observe()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move the targets, simulate 50 ms, and look."""
        action = np.clip(action, -1.0, 1.0)
        self.target = np.clip(self.target + MOVE * action[:3], LOW, HIGH)
        self.opening = float(np.clip(self.opening + GRIP * action[3], 0.0, 1.0))
        self.data.ctrl[:7], self.data.ctrl[7] = self._joints(), OPEN * self.opening
        mujoco.mj_step(self.model, self.data, SUBSTEPS)
        mujoco.mj_forward(self.model, self.data)
        tool, box = self.data.site_xpos[self.site], self.data.xpos[self.box]
        far = float(np.linalg.norm(box - tool))
        near = np.exp(-20.0 * far)
        lift = np.clip((box[2] - HALF) / (1.1 * LIFT), 0.0, 1.0)
        reward = 0.1 * np.exp(-5.0 * far) + 0.3 * near + 0.3 * near * (1.0 - self.opening)
        middle, reach = 0.5 * (LOW + HIGH)[:2], 0.5 * (HIGH - LOW)[:2]
        gone = bool((abs(box[:2] - middle) > reach + MARGIN).any() or box[2] < -MARGIN)
        won = bool(far < 0.05 and box[2] >= HALF + LIFT)
        return self._observe(), float(reward + 2.0 * lift), gone, False, {"is_success": won}

    def _joints(self) -> np.ndarray:
        """Return the arm's targets by damped least squares."""
        data = self.data
        mujoco.mj_jacSite(self.model, data, self.jac[:3], self.jac[3:], self.site)
        jac, q = self.jac[:, :7], data.qpos[:7]
        turn = DOWN @ data.site_xmat[self.site].reshape(3, 3).T
        turned = 0.5 * np.array(
            [turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]
        )
        error = np.concatenate((self.target - data.site_xpos[self.site], turned))
        posture = POSTURE * (HOME - q)
        gram = jac @ jac.T + DAMPING**2 * np.eye(6)
        goal = q + posture + jac.T @ np.linalg.solve(gram, error - jac @ posture)
        return np.clip(goal, self.limits[:7, 0], self.limits[:7, 1])

    def _observe(self) -> np.ndarray:
        data, at = self.data, self.dof_at
        tool, box = data.site_xpos[self.site], data.xpos[self.box]
        parts = (
            *(tool, data.sensordata[:3], self.target - tool, data.qpos[7:8], [self.opening]),
            *(box, tool - box, data.qvel[at : at + 3]),
            data.xmat[self.box].reshape(3, 3)[:2, 0],
        )
        return np.concatenate(parts).astype(np.float32)


def make(path: str) -> gymnasium.Env:
    """Return one environment with its time limit."""
    return gymnasium.wrappers.TimeLimit(LiftCube(path), 80)


def vector_steps(args: argparse.Namespace) -> Measurement:
    """Return a measurement of Gymnasium's `AsyncVectorEnv`, random actions, and its end."""
    envs = gymnasium.vector.AsyncVectorEnv([partial(make, args.model)] * args.num_envs)
    envs.reset(seed=0)
    rng = np.random.default_rng(0)

    def measure() -> float:
        actions = rng.uniform(-1.0, 1.0, (args.steps, args.num_envs, 4)).astype(np.float32)
        began = time.perf_counter()
        for action in actions:
            envs.step(action)
        return args.num_envs * args.steps / (time.perf_counter() - began)

    return measure, envs.close


def succeeded(path: str, act: Callable[[np.ndarray], np.ndarray], episodes: int = 100) -> float:
    """Return the share of episodes whose last step is a success; seeds are fixed.

    act: from observations (n, 22) to actions (n, 4).
    """
    envs, won = [make(path) for _ in range(episodes)], 0
    seen = [env.reset(seed=EVAL_SEED + i)[0] for i, env in enumerate(envs)]
    while envs:
        results = [env.step(action) for env, action in zip(envs, act(np.stack(seen)), strict=True)]
        ended = [gone or late for _, _, gone, late, _ in results]
        won += sum(r[4]["is_success"] for r, end in zip(results, ended, strict=True) if end)
        envs = [env for env, end in zip(envs, ended, strict=True) if not end]
        seen = [r[0] for r, end in zip(results, ended, strict=True) if not end]
    return won / episodes


def training(args: argparse.Namespace) -> tuple[Callable[[], float], ...]:
    """Return measurements of Stable-Baselines3's PPO, an iteration and its success, and its end."""
    from stable_baselines3 import PPO  # type: ignore[import-not-found]
    from stable_baselines3.common.logger import Logger  # type: ignore[import-not-found]
    from stable_baselines3.common.vec_env import (  # type: ignore[import-not-found]
        SubprocVecEnv,
        VecNormalize,
    )

    envs = SubprocVecEnv([partial(make, args.model)] * args.num_envs, start_method="spawn")
    scaled = VecNormalize(envs, norm_reward=False) if args.normalize else None
    sizes = {"pi": args.hidden, "vf": args.hidden}
    algo = PPO(
        "MlpPolicy",
        scaled or envs,
        n_steps=args.batch // args.num_envs,
        batch_size=args.batch // args.minibatches,
        n_epochs=args.epochs,
        seed=0,
        policy_kwargs={"net_arch": sizes},
        device="cpu",
        **json.loads(args.settings),
    )
    algo.set_logger(Logger(None, []))  # its own makes a folder in each call of learn

    def measure() -> float:
        began = time.perf_counter()
        algo.learn(args.batch, reset_num_timesteps=False)
        return args.batch / (time.perf_counter() - began)

    def success() -> float:
        def act(seen: np.ndarray) -> np.ndarray:
            seen = scaled.normalize_obs(seen) if scaled else seen
            return algo.predict(seen, deterministic=True)[0]

        return succeeded(args.model, act)

    return measure, success, envs.close


def main() -> None:
    """Measure what standard input asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    for name in ("num-envs", "steps", "batch", "minibatches", "epochs"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--hidden", type=int, nargs="+", required=True)
    parser.add_argument("--settings", default="{}", help="more keywords of PPO, JSON")
    parser.add_argument("--normalize", action="store_true", help="observations, by VecNormalize")
    args = parser.parse_args()
    args.model = str(pathlib.Path(args.model).resolve())
    args.batch -= args.batch % args.num_envs
    env, close_envs = vector_steps(args)
    train, success, close_training = training(args)
    kinds = {"env": env, "train": train, "success": success}
    names = ("gymnasium", "stable-baselines3", "torch", "mujoco", "numpy")
    print(json.dumps({name: importlib.metadata.version(name) for name in names}), flush=True)
    for line in sys.stdin:
        print(json.dumps(kinds[line.strip()]()), flush=True)
    close_envs()
    close_training()


if __name__ == "__main__":
    main()
