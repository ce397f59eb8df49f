"""Trains emotion recognition in conversation, or any other labels of turns, on dialogues of your own.

The folder holds train.json, dev.json and test.json. Each is a list of dialogues, a dialogue is a list of turns:

  [[{"speaker": "Ann", "text": "It broke again.", "label": "angry"}, {"speaker": "Bob", "text": "What did?"}]]

A turn without a label is context: it is neither learned nor scored.

examples:
  python examples/erc_own.py --data-dir mine --output runs/mine
  python examples/erc_own.py --data-dir mine --preset smoke         to see that it runs
"""

from erc.command import main

if __name__ == "__main__":
    raise SystemExit(main(dataset="own", description=__doc__))
