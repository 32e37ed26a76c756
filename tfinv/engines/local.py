"""The engine of one machine: a run after the other, each in a process of its own."""

from collections.abc import Callable, Generator, Sequence

from tfinv import catalogue
from tfinv.catalogue import Entry
from tfinv.config import RunConfig, to_json
from tfinv.engines import process
from tfinv.engines.base import Failure, Watcher, log_of


class LocalEngine:
    """See `tfinv.engines.base.Engine`."""

    def finish(
        self, entries: Sequence[Entry], command: Callable[[RunConfig], list[str]], watcher: Watcher
    ) -> Generator[tuple[Entry, Failure | None], None, None]:
        """Finishes one run after the other."""
        for entry in entries:
            watcher.begin(entry)
            yield entry, _finish(entry, command(entry.config), watcher)


def _finish(entry: Entry, command: list[str], watcher: Watcher) -> Failure | None:
    output, log = entry.directory.parent, log_of(entry)
    output.mkdir(parents=True, exist_ok=True)
    shown = None

    def watch() -> None:
        nonlocal shown
        epochs = catalogue.epochs_of(entry.directory)
        if epochs != shown:
            watcher.show(entry, epochs)
            shown = epochs

    with log.open("a") as file:
        start = file.tell()
        code = process.work(to_json(entry.config), output, command, file, watch)
    if code == 0 and catalogue.is_finished(entry.directory, entry.config):
        return None
    with log.open("rb") as said:
        said.seek(start)
        return Failure.of(entry, process.reason_of(code), said.read().decode(errors="replace"))
