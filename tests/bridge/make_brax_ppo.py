"""Write tests/bridge/brax_ppo.npz with brax: parameters of a PPO policy, observations, actions.

Run in a Python that has brax 0.14: python tests/bridge/make_brax_ppo.py
"""

import pathlib
import tempfile

import jax
import numpy as np
from brax.training import checkpoint as any_checkpoint
from brax.training.acme import running_statistics, specs
from brax.training.agents.ppo import checkpoint, networks

SIZES = {"observation": 5, "action": 3}
HIDDEN = (16, 8)


def main() -> None:
    """Make a network as brax's PPO does, statistics of some observations, and actions."""
    keys = jax.random.split(jax.random.PRNGKey(4), 4)
    ppo = networks.make_ppo_networks(
        SIZES["observation"],
        SIZES["action"],
        preprocess_observations_fn=running_statistics.normalize,
        policy_hidden_layer_sizes=HIDDEN,
    )
    policy = ppo.policy_network.init(keys[0])
    state = running_statistics.init_state(specs.Array((SIZES["observation"],), np.dtype("float32")))
    seen = 3.0 + 2.0 * jax.random.normal(keys[1], (256, SIZES["observation"]))
    state = running_statistics.update(state, seen)
    observations = 3.0 + 4.0 * jax.random.normal(keys[2], (32, SIZES["observation"]))
    act = networks.make_inference_fn(ppo)((state, policy), deterministic=True)
    actions, _ = act(observations, keys[3])
    logits = ppo.policy_network.apply(state, policy, observations)
    state, policy = _saved(state, policy)
    arrays = {"mean": state.mean, "std": state.std, "count": np.float64(256)}
    for name, layer in policy["params"].items():
        arrays |= {f"{name}/kernel": layer["kernel"], f"{name}/bias": layer["bias"]}
    arrays |= {"observations": observations, "actions": actions, "logits": logits}
    path = pathlib.Path(__file__).with_name("brax_ppo.npz")
    np.savez_compressed(path, **{name: np.asarray(value) for name, value in arrays.items()})
    print(f"{path}: {sorted(arrays)}")


def _saved(state: object, policy: object) -> tuple:
    """Return what is read from a checkpoint that brax's PPO writes."""
    config = any_checkpoint.network_config(
        observation_size=SIZES["observation"],
        action_size=SIZES["action"],
        normalize_observations=True,
        network_factory=networks.make_ppo_networks,
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(folder, 1, (state, policy, policy), config)
        return tuple(checkpoint.load(f"{folder}/{1:012}")[:2])


if __name__ == "__main__":
    main()
