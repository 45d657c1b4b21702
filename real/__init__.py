"""The room of real robots: drivers, replay, collection and fine-tuning. It imports no torch."""
