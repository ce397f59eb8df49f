"""Trains emotion recognition in conversation on IEMOCAP with SPCL, and scores it.

IEMOCAP is released to those who sign its form, so nothing is downloaded; the error says what to do where it is missing.

examples:
  python examples/erc_iemocap.py --data-dir ~/iemocap     the folder with {train,dev,test}_data.json
  python examples/erc_iemocap.py --preset smoke           in about a minute, to see that it runs
  accelerate launch examples/erc_iemocap.py               on all GPUs of the machine
"""

from erc.command import main

if __name__ == "__main__":
    raise SystemExit(main(dataset="IEMOCAP", description=__doc__))
