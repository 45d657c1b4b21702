"""Pre-train image encoders."""
