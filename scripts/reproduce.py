"""Trains the article's networks, and ours, and puts their figures beside the article's.

    python scripts/reproduce.py all --list                             # what is done, what is missing
    python scripts/reproduce.py all --budget smoke                     # every stage of every kind of row
    python scripts/reproduce.py recognition --only cnn_00 capsnet --seeds 0 1 2
    python scripts/reproduce.py all --publish docs                     # and renews docs/results.md

Each run has a process of its own; kill the command wherever you like and give it again: finished runs are
not repeated, an interrupted one loses at most one epoch, a failing one loses no other (exit code 1). Expect
a Ptest of about 0.98 and a Pinv below chance (0.125) for every network of the article.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.reproduce(__doc__)
