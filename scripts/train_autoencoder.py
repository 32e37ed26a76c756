"""Trains the article's autoencoder to render digits transformed, and asks if that carries over to 4 and 9.

    python scripts/train_autoencoder.py                                  # narrower network, rotation
    python scripts/train_autoencoder.py --protocol shift-49              # or shift-unseen, affine
    python scripts/train_autoencoder.py --preset article --epochs 20     # the article's network

The run directory saved_models/<run> gets the model, its history, invariance.csv (the error of every digit at
every parameter), figures, an animation and a SavedModel. Expect an error of 4 that is at least 1.5 times as
high outside its training range as within.
"""

from tfinv import cli

if __name__ == "__main__":
    cli.train("autoencoder", "quick", __doc__)
