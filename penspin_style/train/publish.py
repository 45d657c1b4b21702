"""The policy that a run leaves: `policy/` in its folder, whole or absent."""

import pathlib
from typing import Any

from penspin_style import storage
from penspin_style.env.env import Env
from penspin_style.features import PolicyCard
from penspin_style.nets.policy import save_policy
from penspin_style.train.faults import FaultyRunError
from penspin_style.train.folder import versions


def publish(folder: pathlib.Path, policy: Any, card: PolicyCard, resolved: str) -> pathlib.Path:
    """Write a run's policy in the place of an earlier one; return its folder.

    resolved: the configuration.

    Raises:
        FaultyRunError: it cannot be written.
    """
    target = folder / "policy"
    try:
        fresh = folder / f"{storage.STAGE}policy"
        save_policy(policy, card, fresh, resolved)
        storage.replace(fresh, target)
    except OSError as error:
        raise FaultyRunError(
            f"all is trained, but {target} could not be written ({error}); resume=true "
            "evaluates and writes it again"
        ) from error
    return target


def describe_policy(
    env: Env, policy: Any, task: str, run: str, score: dict[str, Any]
) -> PolicyCard:
    """Return the card of a policy that has this score in an environment."""
    return env.card(
        task=task,
        run=run,
        network=policy.describe(),
        score=score,
        versions=versions(),
        in_keys=policy.in_keys,
    )


def is_published(folder: pathlib.Path, samples: int) -> bool:
    """Return whether the policy of a run's folder is that after so many samples."""
    try:
        card = PolicyCard.from_json((folder / "policy" / "card.json").read_text())
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return card.run.endswith(f"/samples{samples}")
