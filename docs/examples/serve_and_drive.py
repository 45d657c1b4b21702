"""Serve a policy in a process of its own and let a client control an environment with it.

    python docs/examples/serve_and_drive.py [--episodes N] [--policy POLICY.onnx]

The server speaks OpenPI's websocket protocol. The client needs neither torch nor the policy's file:
what goes in and what comes out is on the card that the server sends first. The environment is the
simulated Panda as Gymnasium shows it; on a robot `penspin rollout` does what this loop does.
"""

import argparse
import json
import subprocess
import sys

import gymnasium
import numpy as np

from real.serving.client import PolicyClient

POLICY = "outputs/pretrained/panda_lift_cube/policy.onnx"


def serve(policy: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server on a free port. Return (its process, its URL) once it listens."""
    command = [sys.executable, "-m", "penspin_style", "serve", policy, "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise SystemExit(f"the server ended with exit code {server.wait()}")
    return server, json.loads(line)["url"]


def drive(url: str, episodes: int) -> float:
    """Run episodes by the served policy; return the share of those that succeeded."""
    env = gymnasium.make("tasks:penspin_style/PandaLiftCube-v0")
    succeeded, milliseconds = [], []
    with PolicyClient(url, timeout=1.0) as client:
        print(f"{url} serves {client.metadata['task']}, {1 / client.metadata['control_dt']:g} Hz")
        for episode in range(episodes):
            observation, _ = env.reset(seed=episode)
            client.reset()  # a policy that remembers begins anew
            success, over = False, False
            while not over:
                reply = client.infer({"teacher": observation})
                milliseconds.append(reply["server_timing"]["infer_ms"])
                action = reply["actions"][0]  # (naction,) in [-1, 1]
                observation, _, terminated, truncated, info = env.step(action)
                success |= info["success"]
                over = terminated or truncated
            succeeded.append(success)
    env.close()
    share = float(np.mean(succeeded))
    median = float(np.median(milliseconds))
    print(f"{sum(succeeded)} of {episodes} episodes succeeded; {median:.2f} ms an action")
    return share


def main() -> None:
    """Serve, drive, stop the server."""
    parser = argparse.ArgumentParser(description="Serve a policy and drive an environment with it.")
    parser.add_argument("--policy", default=POLICY)
    parser.add_argument("--episodes", type=int, default=10)
    args = parser.parse_args()
    server, url = serve(args.policy)
    try:
        drive(url, args.episodes)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
