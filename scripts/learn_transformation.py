"""Learns a transformation from the free classes of a protocol, and shows its error on all of them.

    python scripts/learn_transformation.py                                    # 72 linear operators
    python scripts/learn_transformation.py --imagination address --output saved_models/rotation
    python scripts/learn_transformation.py --operator-classes 1 --operator-steps 12

Prints the relative error of imagined test images by class and parameter; of the restricted classes outside
their range, nothing was learned. With --output it also writes the learned layer, the table and a figure of
true and imagined images. Training scripts take the same options: scripts/train_cnn.py --imagination address.
"""

from tfinv import cli


def main() -> None:
    """Learns, after TensorFlow was imported without its messages."""
    from tfinv import imagination_report

    cli.parse(imagination_report.learn_transformation, __doc__)


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(main)
