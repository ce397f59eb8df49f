"""Trains emotion recognition in conversation on MELD with SPCL, and scores it.

examples:
  python examples/erc_meld.py                     all of MELD, about nine minutes on one core
  python examples/erc_meld.py --practice          without any data
  python examples/erc_meld.py --preset smoke      in under a minute, to see that it runs
  accelerate launch examples/erc_meld.py          on all GPUs of the machine
"""

from erc.command import main

if __name__ == "__main__":
    raise SystemExit(main(dataset="MELD", description=__doc__))
