"""Renders docs/results.md and its figures from the tables of finished runs in docs/results/.

    python scripts/render_results.py

To add a run, copy its config.json, environment.json, history.csv and invariance.csv to docs/results/<run>/,
and those of its figures that are to be shown.
"""

from pathlib import Path

from tfinv import cli


def main(docs: Path = Path("docs")) -> None:
    """Renders.

    Args:
        docs: Folder that holds results/ and gets results.md and figures/.
    """
    from tfinv import report

    report.render_results(docs)
    print(f"Written: {docs / 'results.md'}")


if __name__ == "__main__":
    cli.quiet_tensorflow()
    cli.guarded(lambda: cli.parse(main, __doc__))
