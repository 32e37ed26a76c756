"""Makes a sharded dataset on disk, which trains with the memory of a few batches.

    pip install -e '.[shards]'
    python scripts/make_dataset.py pictures/ data/mine        # pictures/cat/1.png, pictures/dog/2.jpg, ...
    python scripts/make_dataset.py mine.npz data/mine --canvas 40
    python scripts/train_cnn.py --dataset data/mine --restricted-classes 0 --excluded-classes

The 70,000 images of mnist take a few seconds. An interruption leaves no dataset.
"""

from tfinv import cli


def main() -> None:
    """Converts, after TensorFlow was imported without its messages."""
    from tfinv.data.conversion import convert

    folder = cli.parse(convert, __doc__)
    print(f"Written: {folder}. Use it: --dataset {folder}")


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(main, "No dataset was left; start again.")
