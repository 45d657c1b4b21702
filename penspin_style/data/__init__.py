"""What was recorded: roll-outs in simulation, to learn from again."""
