from typing import Any

from django.db import migrations, models

import django_ai.automation.queues.models
from django_ai.automation.queues.upgrade import date_parked


def date_what_is_parked(apps: Any, schema_editor: Any) -> None:
    date_parked(apps.get_model("automation_events", "Event"), schema_editor.connection.alias, ["UnknownEventError"])
    date_parked(apps.get_model("automation_events", "CallbackExecution"), schema_editor.connection.alias, ["UnknownCallbackError"])


class Migration(migrations.Migration):

    dependencies = [
        ('automation_events', '0001_initial'),
    ]

    operations = [
        migrations.AddField(
            model_name='callbackexecution',
            name='parked_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='event',
            name='parked_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddIndex(
            model_name='callbackexecution',
            index=django_ai.automation.queues.models.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_callback_parked'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=django_ai.automation.queues.models.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_event_parked'),
        ),
        migrations.RunPython(date_what_is_parked, migrations.RunPython.noop),
    ]
