"""The MDP: what a task says, and the one walk from an action to the next observation."""
