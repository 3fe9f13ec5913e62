import django.db.models.deletion
import django.utils.timezone
import django_ai.automation.db.indexes
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
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('name', models.CharField(editable=False, max_length=200)),
                ('version', models.CharField(default='1', editable=False, max_length=50)),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('active', 'Active'), ('completed', 'Completed'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10)),
                ('data', models.JSONField(blank=True, default=dict, editable=False)),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('position', models.BigIntegerField(default=0, editable=False)),
                ('entity_type', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('entity_id', models.CharField(blank=True, default='', editable=False, max_length=255)),
                ('origin_key', models.CharField(blank=True, editable=False, max_length=32, null=True)),
                ('singleton', models.CharField(blank=True, default='', editable=False, max_length=32)),
                ('routing', models.CharField(blank=True, default='', editable=False, max_length=32)),
                ('holds_claims', models.BooleanField(default=False, editable=False)),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('depth', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('event', models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='agent_runs', to='automation_events.event')),
            ],
            options={
                'verbose_name': 'agent run',
                'permissions': [('resume_agentrun', 'Can resume agent runs'), ('complete_agentrun', 'Can complete agent runs'), ('cancel_agentrun', 'Can cancel agent runs'), ('view_data_agentrun', 'Can view Contexts of agent runs')],
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
            },
        ),
        migrations.CreateModel(
            name='HandlerExecution',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('handler', models.CharField(editable=False, max_length=200)),
                ('milestone', models.CharField(blank=True, default='', editable=False, max_length=250)),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('completed', 'Completed'), ('skipped', 'Skipped'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10)),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('due_at', models.DateTimeField(editable=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('unique_key', models.CharField(editable=False, max_length=32)),
                ('event', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='handler_executions', to='automation_events.event')),
                ('run', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='executions', to='automation_agents.agentrun')),
            ],
            options={
                'verbose_name': 'handler execution',
                'ordering': ['pk'],
                'permissions': [('resume_handlerexecution', 'Can resume handler executions')],
            },
        ),
        migrations.AddIndex(
            model_name='agentrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_agent_wake'),
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
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'pending')), fields=['run', 'status', 'due_at'], name='automation_handler_box'),
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
        migrations.AddConstraint(
            model_name='handlerexecution',
            constraint=models.UniqueConstraint(fields=('unique_key',), name='automation_handler_unique'),
        ),
    ]
