"""Trains the article's autoencoder to render digits transformed, and asks if that carries over to 4 and 9.

    python scripts/train_autoencoder.py                                  # narrower network, rotation
    python scripts/train_autoencoder.py --protocol shift-49              # or shift-unseen, affine
    python scripts/train_autoencoder.py --preset article --epochs 20     # the article's network
    python scripts/train_autoencoder.py --adversarial                    # latents made to look like a prior

The run directory saved_models/<run> gets the model, its history, invariance.csv (the error of every digit at
every parameter), figures, an animation and a SavedModel. Rotated, expect an error of 4 that is at least 1.5
times as high outside its training range as within; shifts take more than the 5 epochs of "quick".
"""

import sys

from tfinv import cli

if __name__ == "__main__":
    arguments = [argument for argument in sys.argv[1:] if argument != "--adversarial"]
    name = "adversarial_autoencoder" if "--adversarial" in sys.argv[1:] else "autoencoder"
    cli.train(name, "quick", __doc__, arguments)
