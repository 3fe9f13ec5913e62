"""One tree of errors. Each message names the thing, the value and the fix; the docstring is the default message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class AutomationError(Exception):
    """django_ai.automation failed."""

    is_retryable: ClassVar[bool] = False
    """Whether another attempt may succeed; if not, a step, callback or handler that raises it fails immediately."""
    is_expected: ClassVar[bool] = False
    """Whether it is part of normal operation, so that it is not reported as a failure."""

    def __init__(self, message: str = "", *args: Any) -> None:
        super().__init__(message or (self.__doc__ or "").strip(), *args)


class SettingsError(AutomationError):
    """settings.AUTOMATION is invalid."""


class DefinitionError(AutomationError, ValueError):
    """The declaration of an event, automation or workflow is invalid."""


class NaiveDatetimeError(AutomationError, ValueError):
    """A datetime has no time zone, so its moment is unknown."""


class UnknownTimeZoneError(AutomationError, ValueError):
    """An entity names a time zone that does not exist."""

    is_retryable = True


class WrongDatabaseError(AutomationError):
    """An entity with events was saved in a different database than the automation tables."""


class ForkedConnectionError(AutomationError, RuntimeError):
    """A forked process may not use a SQLite file to which its parent had an open connection."""


class AttemptTimeoutError(AutomationError, TimeoutError):
    """The attempt ran for longer than its timeout."""

    is_retryable = True


class ControlFlowError(AutomationError, RuntimeError):
    """User code raised a BaseException that is not an Exception, for instance asyncio.CancelledError."""

    is_retryable = True


class OpenTransactionError(AutomationError, RuntimeError):
    """User code left a transaction open."""


class EventStormError(AutomationError):
    """Events cause each other endlessly."""


class NotStorableError(AutomationError, ValueError):
    """A value cannot be stored as JSON in every database."""


class SnapshotFieldError(AutomationError, LookupError):
    """The snapshot of a deleted entity does not contain this field."""


class OutcomeError(AutomationError, TypeError):
    """A step returned something that is not an outcome."""


class CodeError(AutomationError):
    """The code of this worker cannot perform the row; it resumes automatically once a worker has the right code."""


class ContextError(CodeError, ValueError):
    """A Context does not accept its values."""


class InvalidContextError(ContextError):
    """A Context does not accept values that were given from outside. ``errors`` has the error of each field."""

    def __init__(self, message: str = "", errors: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.errors: Mapping[str, str] = {} if errors is None else errors


class DecryptionError(ContextError):
    """A stored value is encrypted, and none of the configured keys decrypts it."""


class PayloadError(ContextError):
    """The event or signal that woke a run carries values that the run's Context does not accept."""


class UnknownWorkflowError(CodeError, LookupError):
    """No workflow has this name."""


class UnknownStepError(CodeError, LookupError):
    """The workflow has no step of this name."""


class UnknownCallbackError(CodeError, LookupError):
    """The function that this execution calls is no longer registered."""


class UnknownEventError(CodeError, LookupError):
    """Nothing declares this event."""


class UnknownScheduleError(CodeError, LookupError):
    """No schedule, or no target of a schedule, has this name."""


class UnknownAgentError(CodeError, LookupError):
    """No agent has this name."""


class UnknownHandlerError(CodeError, LookupError):
    """The agent no longer has this handler."""


class UnknownDefinitionError(AutomationError, LookupError):
    """No workflow, agent, event or schedule has this name."""


class ClaimedError(AutomationError):
    """Another run has claimed this event."""

    is_retryable = True


class SingletonTakenError(AutomationError):
    """An agent is already active for the same match, and the definition allows only one."""


class RedirectedToSingletonError(SingletonTakenError):
    """The event would spawn a second singleton, so it is delivered to the first."""

    is_expected = True


class UnknownRunError(AutomationError):
    """There is no such workflow run: it was deleted, or never committed."""


class RunError(AutomationError):
    """What was asked of a run is not possible. ``run`` is the run."""

    def __init__(self, message: str = "", run: Any = None) -> None:
        super().__init__(message)
        self.run = run


class RunExistsError(RunError):
    """A run of this workflow was started with this key before."""


class NoContextError(RunError):
    """The run has no Context yet."""


class RunFailedError(RunError):
    """The run has failed, so it has no result."""


class RunCancelledError(RunError):
    """The run was cancelled, or withdrawn before it started, so it has no result."""


class RunUnfinishedError(RunError):
    """The run has not ended yet."""


class RunTimeoutError(RunUnfinishedError, TimeoutError):
    """The run has not ended in time."""


class EndlessWaitError(AutomationError, RuntimeError):
    """Waiting here for the end of a run would never end."""


class NotResumableError(AutomationError):
    """Only a parked row can be resumed."""


class StateError(AutomationError):
    """What was asked makes no sense in the state of the row. ``row`` is the row."""

    def __init__(self, message: str = "", row: Any = None) -> None:
        super().__init__(message)
        self.row = row


class LeaseLostError(AutomationError):
    """The row was claimed by another worker, changed or cancelled meanwhile; nothing of this worker's work was kept."""
