"""Runs the comparison of methods, curricula, batch and memory sizes on all datasets, and reports on it.

What is done is skipped and what was interrupted goes on, so the same command continues the grid. Several of them, with
other --seeds or --datasets, may fill one --output side by side. The report can be made at any time.

examples:
  python examples/reproduce.py                                     the main comparison with MiniLM, five seeds
  python examples/reproduce.py --studies batch memory --seeds 0 1  further studies into the same report
  python examples/reproduce.py --preset mpnet --encoder ~/mpnet    another encoder
  python examples/reproduce.py --report runs/a runs/b              only the report, on runs that are there
  python examples/reproduce.py --practice --seeds 0 --epochs 2     without any data, to see that it runs
"""

import sys

from erc.grid_command import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
