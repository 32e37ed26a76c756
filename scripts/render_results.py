"""Renders docs/results.md and its figures from the tables of finished runs in docs/results/.

    python scripts/render_results.py

`scripts/reproduce.py --publish docs` adds the runs of a suite. To add another, copy its config.json,
environment.json, history.csv and invariance.csv to docs/results/<run>/, and those of its figures that are to
be shown.
"""

from pathlib import Path

from tfinv import cli


def main(docs: Path = Path("docs")) -> None:
    """Renders.

    Args:
        docs: Folder that holds results/ and gets results.md and figures/.
    """
    from tfinv import results_page

    results_page.render_results(docs)
    print(f"Written: {docs / 'results.md'}")


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(lambda: cli.parse(main, __doc__))
