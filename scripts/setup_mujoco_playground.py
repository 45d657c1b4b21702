"""Check the installation: `penspin doctor`. MuJoCo Playground and JAX are not needed."""

import sys

from penspin_style.__main__ import main

if __name__ == "__main__":
    print("MuJoCo and MuJoCo Warp simulate, PyTorch learns: neither Playground nor JAX is needed")
    sys.exit(main(["doctor", *sys.argv[1:]]))
