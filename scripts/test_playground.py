"""Verify the installation and measure the speed: `penspin doctor`, then `penspin bench sim`."""

import sys

from penspin_style.__main__ import main

TASK = "task=real2sim_pick_place"

if __name__ == "__main__":
    sys.exit(main(["doctor"]) or main(["bench", "sim", TASK, *sys.argv[1:]]))
