"""A twin of the carts on a rail, and what it says of their place."""

import dataclasses

from penspin_style.env.env import Env
from penspin_style.env.task import load_task
from real.twin.robot import SimRobot, TwinConfig

RAIL = TwinConfig("tests.support.rail")
DT = 0.05


class Formula:
    """A policy of one line."""

    def __init__(self, card, act=None):
        self.card, self.act = card, act

    def reset(self):
        pass


def rail(**changes):
    robot = SimRobot(dataclasses.replace(RAIL, **changes))
    robot.connect()
    robot.reset()
    return robot


def place(robot):
    return robot.observe().values["place"][0]


def true_place(robot):
    return robot.batch.sim.data.qpos[0, 0].item()


# The training's physics.


def env_of(name, num_envs, seed, **config):
    kind = load_task(name)
    return Env(kind(kind.Config(**config)), num_envs, seed=seed, nthread=1)
