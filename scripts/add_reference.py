"""Adds a finished run to the zoo in saved_models/reference, packed and with a model card.

    python scripts/add_reference.py saved_models/cnn_quick-mnist-rotate-34-s0
    python scripts/evaluate.py saved_models/reference/cnn_quick-mnist-rotate-34-s0

A model has at most 6 MB and the zoo 25 MB, because the repository carries them.
"""

from pathlib import Path

import tyro

from tfinv import cli


def main(
    run: tyro.conf.Positional[Path],
    zoo: Path = Path("saved_models/reference"),
    overwrite: bool = False,
) -> None:
    """Adds.

    Args:
        run: Run directory.
        zoo: Folder of the zoo.
        overwrite: Replace the model of that name.
    """
    from tfinv import reference

    print(f"Written: {reference.add(run, zoo, overwrite)}")


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(lambda: cli.parse(main, __doc__))
