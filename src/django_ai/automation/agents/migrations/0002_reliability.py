from typing import Any

from django.db import migrations, models

import django_ai.automation.queues.models
from django_ai.automation.queues.upgrade import date_parked


def date_what_is_parked(apps: Any, schema_editor: Any) -> None:
    date_parked(apps.get_model("automation_agents", "AgentRun"), schema_editor.connection.alias, ["UnknownAgentError", "ContextError"])
    date_parked(apps.get_model("automation_agents", "HandlerExecution"), schema_editor.connection.alias, ["UnknownHandlerError"])


class Migration(migrations.Migration):

    dependencies = [
        ('automation_agents', '0001_initial'),
        ('automation_events', '0002_reliability'),
    ]

    operations = [
        migrations.AlterModelOptions(
            name='agentrun',
            options={'permissions': [('resume_agentrun', 'Can resume agent runs'), ('complete_agentrun', 'Can complete agent runs'), ('cancel_agentrun', 'Can cancel agent runs'), ('view_data_agentrun', 'Can view Contexts of agent runs')], 'verbose_name': 'agent run'},
        ),
        migrations.AlterModelOptions(
            name='handlerexecution',
            options={'ordering': ['pk'], 'permissions': [('resume_handlerexecution', 'Can resume handler executions')], 'verbose_name': 'handler execution'},
        ),
        migrations.AddField(
            model_name='agentrun',
            name='parked_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name='agentrun',
            name='version',
            field=models.CharField(db_default='1', default='1', editable=False, max_length=50),
        ),
        migrations.AddField(
            model_name='handlerexecution',
            name='parked_at',
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.queues.models.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_agent_parked'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=django_ai.automation.queues.models.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_handler_parked'),
        ),
        migrations.RunPython(date_what_is_parked, migrations.RunPython.noop),
    ]
