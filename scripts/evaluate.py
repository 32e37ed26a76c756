"""Evaluates a run directory, a .keras file or a SavedModel folder under a protocol.

    python scripts/evaluate.py saved_models/capsnet_quick-mnist-rotate-34-s0
    python scripts/evaluate.py model.keras --protocol rotate-34 --repeats 20 --output results/

Prints the protocol's tests (Ptest, Pin, Pout, Pinv) beside the article's figures. With --output it also
writes invariance.csv (every class at every angle) and the figures drawn from it. 20 passes of a small
CNN take well under a minute on 2 cores.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.evaluate(__doc__)
