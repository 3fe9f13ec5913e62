"""Two models with equal fields, with and without events, to measure the cost of a save(); and notes to be routed."""

from django.db import models

from django_ai.automation.events.definitions import EventDefinition


class Plain(models.Model):
    name = models.CharField(max_length=50)
    ready = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True, db_index=True)

    def __str__(self) -> str:
        return self.name


class Eventful(models.Model):
    name = models.CharField(max_length=50)
    ready = models.BooleanField(default=False)
    due_at = models.DateTimeField(null=True, db_index=True)

    events = [
        EventDefinition("eventful_ready", condition=lambda each: each.ready),
        EventDefinition("eventful_due", date_field="due_at"),
    ]

    def __str__(self) -> str:
        return self.name


class Note(models.Model):
    owner = models.IntegerField()
    due_at = models.DateTimeField(null=True, db_index=True)

    events = [EventDefinition("note_taken"), EventDefinition("note_due", date_field="due_at")]

    def __str__(self) -> str:
        return f"of {self.owner}"


class Due(models.Model):
    due_at = models.DateTimeField(null=True, db_index=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"due at {self.due_at}"


class Unheard(Due):
    events = [EventDefinition("unheard_due", date_field="due_at")]


class Heard(Due):
    events = [EventDefinition("heard_due", date_field="due_at")]


class Written(Due):
    events = [EventDefinition("written_due", date_field="due_at")]
