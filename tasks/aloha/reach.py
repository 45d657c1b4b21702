"""Bring a gripper of ALOHA to a pose in the world by inverse kinematics, for scripted experts.

The servos sag and lag, so that steps computed from measured joints would wind up. The kinematics
are those of a second simulation, whose arms a script puts where the commands lead.
"""

import torch
from torch import Tensor

from penspin_style.sim.sim import Sim
from tasks.aloha.arms import Arm
from tasks.robots.aloha.description import ARM

DAMPING = 0.03
TURN_WEIGHT = 0.15
"""m that an error of one radian counts for: the position comes first."""
WRIST = ARM.index("wrist_angle")
LATER = 0.3
"""Share of that weight where a joint is as fast, or as far, as it can be."""


class Reach:
    """The joint targets that lead one gripper to poses, by damped least squares.

    ghost: the simulation whose kinematics count.
    """

    def __init__(
        self,
        ghost: Sim,
        arm: Arm,
        *,
        damping: float = DAMPING,
        turn_weight: float = TURN_WEIGHT,
    ) -> None:
        n = len(ARM)
        first = ghost.model.joint(f"{arm.side}_{ARM[0]}").id
        self.ghost, self.arm = ghost, arm
        self._anchor = ghost.data.xanchor[:, first : first + n]
        self._axis = ghost.data.xaxis[:, first : first + n]
        weights = torch.tensor([1.0] * 3 + [turn_weight] * 3, device=ghost.device)
        self._weights = weights[:, None]
        rows = torch.tensor([1.0] * 3 + [LATER] * 3, device=ghost.device)
        self._places_first = rows[:, None]
        self._ridge = damping**2 * torch.eye(6, device=ghost.device)

    def move(self, shift: Tensor, turn: Tensor, *, speed: float) -> Tensor:
        """Return the change of the targets that moves the ghost's gripper, (num_envs, 6) rad.

        shift, turn: (num_envs, 3) m and rad, in the world.
        """
        return capped(self.solve(shift, turn), speed)

    def solve(self, shift: Tensor, turn: Tensor) -> Tensor:
        """Return the change of the joints that moves the ghost's gripper, at any speed."""
        return self._solve(*self._jacobian(shift, turn))

    def swing(
        self, shift: Tensor, turn: Tensor, *, speed: float, low: Tensor, high: Tensor
    ) -> Tensor:
        """Return such changes by which the gripper is soon at its place, (num_envs, 6) rad.

        Where the wrist cannot turn as fast as the others move, the hand turns later instead of
        moving more slowly. low, high: (num_envs, 6) rad, how far the targets may still go; a joint
        that may not go on is left where it is, and the others make up for it.
        """
        jac, wish = self._jacobian(shift, turn)
        low, high = low.clone(), high.clone()
        low[:, WRIST].clamp_(min=-speed)
        high[:, WRIST].clamp_(max=speed)
        change = self._solve(jac, wish)
        bound = torch.minimum(torch.maximum(change, low), high)
        fixed = bound != change
        rows = torch.where(fixed.any(dim=1)[:, None, None], self._places_first, 1.0)
        left = rows * (wish - jac @ (bound * fixed)[:, :, None])
        others = self._solve(rows * jac * ~fixed[:, None], left)
        change = torch.where(fixed, bound, capped(others, speed))
        return change.clamp(-speed, speed)

    def _jacobian(self, shift: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted Jacobian (num_envs, 6, 6), and what it is to lead to, (.., 6, 1)."""
        wish = torch.cat((shift, turn), dim=1)[:, :, None] * self._weights
        lever = self.arm.position(self.ghost)[:, None] - self._anchor
        jac = torch.cat((torch.linalg.cross(self._axis, lever), self._axis), dim=2)
        return jac.transpose(1, 2) * self._weights, wish

    def _solve(self, jac: Tensor, wish: Tensor) -> Tensor:
        """Return the damped least squares (num_envs, 6) of jac @ change = wish."""
        gram = torch.baddbmm(self._ridge, jac, jac.transpose(1, 2))
        return (jac.transpose(1, 2) @ torch.linalg.solve_ex(gram, wish)[0]).squeeze(2)


def capped(change: Tensor, speed: float) -> Tensor:
    """Return changes (num_envs, n) made smaller, in their direction, where one is above `speed`."""
    largest = change.abs().amax(dim=1, keepdim=True)
    return change * (speed / largest.clamp(min=speed))
