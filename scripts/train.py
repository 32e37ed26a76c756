"""Trains any network of tfinv/models, such as one that you added, and asks whether it learned the invariance.

    python scripts/train.py group_cnn --preset group_cnn_c8
    python scripts/train.py MODEL --help

The run directory saved_models/<run> gets the model, its history, invariance.csv, figures and a SavedModel.
Ptest is accuracy under the training ranges, Pinv that of 3 and 4 turned about upside down.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.train_any(__doc__)
