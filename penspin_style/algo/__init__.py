"""Learning: one file, one algorithm. An algorithm sees an environment only as TensorDict keys."""
