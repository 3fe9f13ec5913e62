from typing import Any

from django.db import migrations, models

import django_ai.automation.queues.models
from django_ai.automation.queues.upgrade import date_parked


def date_what_is_parked(apps: Any, schema_editor: Any) -> None:
    date_parked(apps.get_model("automation_workflows", "WorkflowRun"), schema_editor.connection.alias, ["UnknownWorkflowError", "UnknownStepError", "ContextError"])


class Migration(migrations.Migration):

    dependencies = [
        ('automation_events', '0002_reliability'),
        ('automation_workflows', '0001_initial'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='signal',
            options={'permissions': [('resume_signal', 'Can resume parked signals'), ('view_data_signal', 'Can view payloads of signals')], 'verbose_name': 'signal'},
        ),
        migrations.AlterModelOptions(
            name='workflowrun',
            options={'permissions': [('resume_workflowrun', 'Can resume workflow runs'), ('cancel_workflowrun', 'Can cancel workflow runs'), ('view_data_workflowrun', 'Can view Contexts of workflow runs')], 'verbose_name': 'workflow run'},
        ),
        migrations.AddField(
            model_name='signal',
            name='parked_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='workflowrun',
            name='parked_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.queues.models.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_run_parked'),
        ),
        migrations.RunPython(date_what_is_parked, migrations.RunPython.noop),
    ]
