from . import crates, news, programs, things, visits  # noqa: F401
