from . import programs, things  # noqa: F401
