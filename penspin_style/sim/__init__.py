"""Physics: the same MuJoCo fields, as live torch tensors, on MuJoCo C, Warp or JAX."""
