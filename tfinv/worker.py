"""One run in a process of its own: `python -m tfinv.worker OUTPUT COMMAND...`, its configuration on stdin.

The parent keeps stdin open. When it ends, however that happens, so does this process: two at work on one
run directory cannot come about, and what is written is replaced atomically.
"""

import json
import os
import sys
import threading
from pathlib import Path


def main() -> None:
    """Resumes the run, or starts it; exit code 2 and one line on stderr mean bad input."""
    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    output, *command = sys.argv[1:]
    from tfinv import experiment, models, training
    from tfinv.config import RunConfig, from_dict
    from tfinv.errors import UsageError

    sys.argv = command  # what environment.json shall say
    try:
        module = models.get_model(values["model_name"])
        config = from_dict(RunConfig[module.Config], values)  # type: ignore[name-defined]
        training.make_deterministic(config.seed)
        experiment.run(config, Path(output), resume=True)
    except (UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):  # not sys.stdin.read(), whose lock would outlive main()
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
