"""Trains emotion recognition in conversation on EmoryNLP with SPCL, and scores it on all 1328 test utterances.

examples:
  python examples/erc_emorynlp.py                     all of EmoryNLP, about twelve minutes on one core
  python examples/erc_emorynlp.py --preset smoke      in under a minute, to see that it runs
  accelerate launch examples/erc_emorynlp.py          on all GPUs of the machine
"""

from erc.command import main

if __name__ == "__main__":
    raise SystemExit(main(dataset="EmoryNLP", description=__doc__))
