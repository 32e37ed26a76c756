"""Trains one of the article's convolutional networks on rotate-34 and asks whether it learned the invariance.

    python scripts/train_cnn.py                                      # narrower network, 90 seconds on 2 cores
    python scripts/train_cnn.py --preset cnn_bn_00 --epochs 15       # the article's "best model"

The run directory saved_models/<run> gets the model, its history, invariance.csv, figures and a SavedModel.
Ptest is accuracy under the training ranges, Pinv that of 3 and 4 turned about upside down: expect a
Ptest above 0.95 and a Pinv below chance (0.125).
"""

from tfinv import cli

if __name__ == "__main__":
    cli.train("cnn", "quick", __doc__)
