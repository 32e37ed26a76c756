"""Trains matrix capsules with EM routing on rotate-34 and asks whether they learned the invariance.

    python scripts/train_em_capsnet.py                                  # narrower network, for 2 cores
    python scripts/train_em_capsnet.py --preset article --epochs 3 --repeats 5 --curve-images 1000

The run directory saved_models/<run> gets the model, its history, invariance.csv, figures and a SavedModel.
--variant chooses between the paper's routing (hinton2018) and that of the article's authors (article).
Ptest is accuracy under the training ranges, Pinv that of 3 and 4 turned about upside down: expect a
Ptest above 0.95 and a Pinv below chance (0.125).
"""

from tfinv import cli

if __name__ == "__main__":
    cli.train("em_capsnet", "quick", __doc__)
