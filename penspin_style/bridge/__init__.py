"""Between torch and JAX: arrays without a copy, policies, and environments of MuJoCo Playground."""
