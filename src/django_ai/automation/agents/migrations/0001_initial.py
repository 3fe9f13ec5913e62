import django.db.models.deletion
import django.utils.timezone
import django_ai.automation.db.indexes
import django_ai.automation.queues.tracing
import django_ai.automation.values.digests
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('automation_events', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='AgentRun',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('queue', models.CharField(blank=True, default='', editable=False, max_length=50, verbose_name='queue')),
                ('priority', models.SmallIntegerField(default=0, editable=False, verbose_name='priority')),
                ('name', models.CharField(editable=False, max_length=200, verbose_name='name')),
                ('version', models.CharField(default='1', editable=False, max_length=50, verbose_name='version')),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('active', 'Active'), ('completed', 'Completed'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10, verbose_name='status')),
                ('data', models.JSONField(blank=True, default=dict, editable=False, verbose_name='data')),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32, verbose_name='call key')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='attempt')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='created at')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='started at')),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='finished at')),
                ('position', models.BigIntegerField(default=0, editable=False, verbose_name='position')),
                ('entity_type', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='entity type')),
                ('entity_id', models.CharField(blank=True, default='', editable=False, max_length=255, verbose_name='entity id')),
                ('origin_key', models.CharField(blank=True, editable=False, max_length=32, null=True, verbose_name='origin key')),
                ('singleton', models.CharField(blank=True, default='', editable=False, max_length=32, verbose_name='singleton')),
                ('routing', models.CharField(blank=True, default='', editable=False, max_length=32, verbose_name='routing')),
                ('holds_claims', models.BooleanField(default=False, editable=False, verbose_name='holds claims')),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='caused by')),
                ('trace_context', models.CharField(blank=True, default=django_ai.automation.queues.tracing.current_trace_context, editable=False, max_length=255, null=True, verbose_name='trace context')),
                ('depth', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='depth')),
                ('event', models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='agent_runs', to='automation_events.event', verbose_name='event')),
            ],
            options={
                'verbose_name': 'agent run',
                'verbose_name_plural': 'agent runs',
                'permissions': [('resume_agentrun', 'Can resume agent runs'), ('complete_agentrun', 'Can complete agent runs'), ('cancel_agentrun', 'Can cancel agent runs'), ('pause_agentrun', 'Can pause agent runs'), ('edit_agentrun', 'Can edit Contexts of agent runs'), ('view_data_agentrun', 'Can view Contexts of agent runs')],
            },
        ),
        migrations.CreateModel(
            name='AgentRoute',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('key', models.CharField(editable=False, max_length=32)),
                ('unique_key', models.CharField(blank=True, editable=False, max_length=32, null=True)),
                ('run', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='routes', to='automation_agents.agentrun')),
            ],
            options={
                'verbose_name': 'agent route',
                'verbose_name_plural': 'agent routes',
            },
        ),
        migrations.CreateModel(
            name='HandlerExecution',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('handler', models.CharField(editable=False, max_length=200, verbose_name='handler')),
                ('milestone', models.CharField(blank=True, default='', editable=False, max_length=250, verbose_name='milestone')),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('waiting', 'Waiting'), ('completed', 'Completed'), ('skipped', 'Skipped'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10, verbose_name='status')),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='attempt')),
                ('deferrals', models.PositiveIntegerField(default=0, editable=False, verbose_name='deferrals')),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32, verbose_name='call key')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('due_at', models.DateTimeField(editable=False, verbose_name='due at')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='created at')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='started at')),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='finished at')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('unique_key', models.CharField(editable=False, max_length=32, verbose_name='unique key')),
                ('event', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='handler_executions', to='automation_events.event', verbose_name='event')),
                ('run', models.ForeignKey(db_index=False, editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='executions', to='automation_agents.agentrun', verbose_name='run')),
            ],
            options={
                'verbose_name': 'handler execution',
                'verbose_name_plural': 'handler executions',
                'ordering': ['pk'],
                'permissions': [('resume_handlerexecution', 'Can resume handler executions')],
            },
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('priority', 0), ('queue', ''), ('wake_at__isnull', False)), elsewhere=['queue', 'priority', 'wake_at'], fields=['wake_at'], name='automation_agent_wake'),
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.db.indexes.PartialOnlyIndex(condition=models.Q(('wake_at__isnull', False), models.Q(('priority', 0), ('queue', ''), _negated=True)), fields=['queue', 'priority', 'wake_at'], name='automation_agent_lanes'),
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_agent_parked'),
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'failed')), fields=['status', 'finished_at'], name='automation_agent_failures'),
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('entity_id__gt', '')), fields=['entity_id', 'entity_type'], name='automation_agent_entity'),
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=models.Index(fields=['name', 'status', 'routing'], name='automation_agent_name'),
        ),
        migrations.AddConstraint(
            model_name='agentrun',
            constraint=models.UniqueConstraint(fields=('origin_key',), name='automation_agent_origin'),
        ),
        migrations.AddIndex(
            model_name='agentroute',
            index=models.Index(fields=['key', 'run'], name='automation_route_key'),
        ),
        migrations.AddConstraint(
            model_name='agentroute',
            constraint=models.UniqueConstraint(fields=('unique_key',), name='automation_route_unique'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=models.Index(fields=['run', 'id'], name='automation_handler_run'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'pending')), fields=['run', 'status', 'due_at'], name='automation_handler_mailbox'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'failed')), fields=['run', 'status'], name='automation_handler_failed'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_handler_parked'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'failed')), fields=['status', 'finished_at'], name='automation_handler_failures'),
        ),
        migrations.AddIndex(
            model_name='handlerexecution',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('finished_at__isnull', False)), fields=['finished_at', 'status', 'due_at', 'started_at'], name='automation_handler_ended'),
        ),
        migrations.AddConstraint(
            model_name='handlerexecution',
            constraint=models.UniqueConstraint(fields=('unique_key',), name='automation_handler_unique'),
        ),
    ]
