"""Builds the page docs/explorer, where one turns a digit and watches networks: networks, curves, images.

    pip install -e '.[onnx]'
    python scripts/build_explorer.py
    python -m http.server --directory docs/explorer

Needs npm, for onnxruntime-web. The networks are those of saved_models/reference; --zoo takes other runs.
"""

from pathlib import Path

from tfinv import cli


def main(page: Path = Path("docs/explorer"), zoo: Path = Path("saved_models/reference")) -> None:
    """Builds.

    Args:
        page: Folder of the page.
        zoo: Folder of run directories to show.
    """
    from tfinv import explorer

    print(f"Written: {explorer.build(page, zoo)}. Look: python -m http.server --directory {page}")


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(lambda: cli.parse(main, __doc__))
