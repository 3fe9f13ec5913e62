"""One tree of errors. Each message names the thing, the value and the fix; the docstring is the default message."""

from __future__ import annotations

from typing import Any, ClassVar


class AutomationError(Exception):
    """Something went wrong in django_ai.automation."""

    is_retryable: ClassVar[bool] = False
    """Whether trying again may help; else a step or handler that raises it fails at once."""
    is_expected: ClassVar[bool] = False
    """Whether this is how things go, and nothing that anybody needs to hear of."""

    def __init__(self, message: str = "", *args: Any) -> None:
        super().__init__(message or (self.__doc__ or "").strip(), *args)


class SettingsError(AutomationError):
    """settings.AUTOMATION is wrong."""


class DefinitionError(AutomationError, ValueError):
    """An event, automation or workflow is declared wrongly."""


class NaiveDatetimeError(AutomationError, ValueError):
    """A date has no time zone, so nobody knows when it is."""


class WrongDatabaseError(AutomationError):
    """An entity with events was saved in another database than the automation tables."""


class ForkedConnectionError(AutomationError, RuntimeError):
    """A forked process may not use SQLite where its parent had a connection open."""


class AttemptTimeoutError(AutomationError, TimeoutError):
    """The attempt ran for longer than its timeout."""

    is_retryable = True


class ControlFlowError(AutomationError, RuntimeError):
    """User code raised something that is no Exception, for instance asyncio.CancelledError."""

    is_retryable = True


class OpenTransactionError(AutomationError, RuntimeError):
    """User code left a transaction open."""


class EventStormError(AutomationError):
    """Events cause each other without end."""


class NotStorableError(AutomationError, ValueError):
    """A value cannot be stored as JSON in every database."""


class SnapshotFieldError(AutomationError, LookupError):
    """The snapshot of a deleted entity does not hold this field."""


class OutcomeError(AutomationError, TypeError):
    """A step returned something that is not an outcome."""


class CodeError(AutomationError):
    """The code of this worker cannot go on with a row. Other code may: what is parked for it goes on by itself then."""


class ContextError(CodeError, ValueError):
    """A Context does not accept the values that it was given."""


class DecryptionError(ContextError):
    """What is stored is encrypted, and no key in use opens it."""


class PayloadError(ContextError):
    """What woke a run carries values that its Context does not accept."""


class UnknownWorkflowError(CodeError, LookupError):
    """No workflow has this name."""


class UnknownStepError(CodeError, LookupError):
    """The workflow has no step of this name."""


class UnknownCallbackError(CodeError, LookupError):
    """The function that this execution calls is not registered any more."""


class UnknownEventError(CodeError, LookupError):
    """No model declares this event any more."""


class UnknownAgentError(CodeError, LookupError):
    """No agent has this name."""


class UnknownHandlerError(CodeError, LookupError):
    """The agent has no such handler any more."""


class ClaimedError(AutomationError):
    """Another run has claimed this event."""

    is_retryable = True


class SingletonTakenError(AutomationError):
    """Another agent lives for the same match, and the definition allows one."""


class RedirectedToSingletonError(SingletonTakenError):
    """The event that would spawn a second singleton goes to the first."""

    is_expected = True


class UnknownRunError(AutomationError):
    """There is no such workflow run: it was removed, or never committed."""


class NotResumableError(AutomationError):
    """Only a parked row can be resumed."""


class LeaseLostError(AutomationError):
    """The row was taken over, moved or cancelled while this worker had it; nothing of its work was kept."""
