"""Trains a HyperNet to render digits under a transformation whose parameter controls its weights.

    python scripts/train_hypernet.py                                    # addresses, narrower, for 2 cores
    python scripts/train_hypernet.py --protocol shift-49
    python scripts/train_hypernet.py --preset compensation              # back to upright, by an unknown angle

4 and 9 are shown within 45 degrees of upright only. The run directory saved_models/<run> gets the model, its
history, invariance.csv with the error of each digit at each angle, figures, an animation and a SavedModel.
Compare the ratio of the errors outside and inside that range with the autoencoder's.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.train("hypernet", "quick", __doc__)
