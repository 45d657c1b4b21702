"""Train: a run's folder, its loop, checkpoints, evaluation and configuration."""
