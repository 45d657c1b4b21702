"""One environment of a simulation as MuJoCo itself has it: for what only MuJoCo computes."""

import copy

import mujoco

from penspin_style.sim.sim import Sim


class OneWorld:
    """A model and data of their own, as one environment has them after `update`.

    Poses are computed anew from the state, in double precision, with that environment's own
    parameters.
    """

    def __init__(self, sim: Sim) -> None:
        self.sim = sim
        self.model = copy.copy(sim.model)
        self.data = mujoco.MjData(self.model)
        needs = mujoco.MjModel._setconst_inputs
        self._sets_const = any(name in needs for name in dir(sim.params))

    def update(self, env_id: int) -> None:
        """Take an environment's parameters and state; compute what follows from them."""
        for name in dir(self.sim.params):
            owner = self.model.opt if name.startswith("opt.") else self.model
            value = self.sim.params[name][env_id].cpu().numpy()
            if value.ndim:
                getattr(owner, name.removeprefix("opt."))[:] = value
            else:
                setattr(owner, name.removeprefix("opt."), value.item())
        if self._sets_const:
            mujoco.mj_setConst(self.model, self.data)
        for name in ("qpos", "qvel", "ctrl", "mocap_pos", "mocap_quat"):
            field = getattr(self.data, name)
            if field.size:
                field[:] = self.sim.data[name][env_id].cpu().numpy()
        mujoco.mj_forward(self.model, self.data)
