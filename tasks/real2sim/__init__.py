"""Real2Sim: scanned objects become worlds to train in."""
