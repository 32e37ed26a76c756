"""Trains a capsule network with dynamic routing on rotate-34 and asks whether it learned the invariance.

    python scripts/train_capsnet.py                                  # narrower network, 5 minutes on 2 cores
    python scripts/train_capsnet.py --preset article --epochs 3 --repeats 5 --curve-images 1000

The run directory saved_models/<run> gets the model, its history, invariance.csv, figures and a SavedModel.
Ptest is accuracy under the training ranges, Pinv that of 3 and 4 turned about upside down: expect a
Ptest above 0.95 and a Pinv below chance (0.125).
"""

from tfinv import cli

if __name__ == "__main__":
    cli.train("capsnet", "quick", __doc__)
