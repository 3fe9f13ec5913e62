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
        migrations.AlterModelOptions(
            name='callbackexecution',
            options={'permissions': [('resume_callbackexecution', 'Can resume callback executions')], 'verbose_name': 'callback execution'},
        ),
        migrations.AlterModelOptions(
            name='event',
            options={'permissions': [('resume_event', 'Can resume parked events'), ('cancel_event', 'Can cancel pending events'), ('view_data_event', 'Can view payloads and snapshots of events')], 'verbose_name': 'event'},
        ),
        migrations.AddField(
            model_name='eventclaim',
            name='namespace',
            field=models.CharField(blank=True, db_default='', default='', editable=False, max_length=100),
        ),
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
