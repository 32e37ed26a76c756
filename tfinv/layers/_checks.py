"""Checks of layer arguments."""


def check_at_least_one(**values: int) -> None:
    """Raises ValueError that names the first value below 1."""
    for name, value in values.items():
        if value < 1:
            raise ValueError(
                f"Invalid value for argument {name}. Expected at least 1. Received: {name}={value}"
            )
