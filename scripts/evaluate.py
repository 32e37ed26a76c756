"""Evaluates a run directory, a .keras file or a SavedModel folder under a protocol.

    python scripts/evaluate.py saved_models/capsnet_quick-mnist-rotate-34-s0
    python scripts/evaluate.py model.keras --protocol rotate-34 --repeats 20 --output results/

Prints the protocol's tests (Ptest, Pin, Pout, Pinv), for a network of the article's beside its figures. With
--output it also measures every class at every angle, and writes invariance.csv and the figures drawn from
it. For cnn_bn_00 on 2 cores the 20 passes take about 50 seconds and the curve 90; --curve-images 1000
shortens the latter.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.evaluate(__doc__)
