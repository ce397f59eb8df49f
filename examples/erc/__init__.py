"""Emotion recognition in conversation (ERC) with SPCL: what the example scripts share."""
