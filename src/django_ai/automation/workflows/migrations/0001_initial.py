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
            name='WorkflowRun',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('name', models.CharField(editable=False, max_length=200)),
                ('version', models.CharField(default='1', editable=False, max_length=50)),
                ('status', models.CharField(choices=[('running', 'Running'), ('waiting', 'Waiting'), ('suspended', 'Suspended'), ('completed', 'Completed'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('withdrawn', 'Withdrawn'), ('parked', 'Parked')], default='running', editable=False, max_length=10)),
                ('current_step', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('data', models.JSONField(blank=True, default=dict, editable=False)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('visit', models.PositiveIntegerField(default=1, editable=False)),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32)),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('planned', models.BooleanField(default=False, editable=False)),
                ('entity_type', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('entity_id', models.CharField(blank=True, default='', editable=False, max_length=255)),
                ('origin_key', models.CharField(blank=True, editable=False, max_length=32, null=True)),
                ('parent_channel', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('depth', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('holds_claims', models.BooleanField(default=False, editable=False)),
                ('position', models.BigIntegerField(default=0, editable=False)),
                ('wake_reason', models.CharField(default='first', editable=False, max_length=10)),
                ('wake_ref', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('wake_step', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('event', models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='workflow_runs', to='automation_events.event')),
                ('parent', models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='children', to='automation_workflows.workflowrun')),
            ],
            options={
                'verbose_name': 'workflow run',
                'permissions': [('resume_workflowrun', 'Can resume workflow runs'), ('cancel_workflowrun', 'Can cancel workflow runs'), ('view_data_workflowrun', 'Can view Contexts of workflow runs')],
            },
        ),
        migrations.CreateModel(
            name='Wait',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('visit', models.PositiveIntegerField(editable=False)),
                ('channel', models.CharField(editable=False, max_length=210)),
                ('key', models.CharField(editable=False, max_length=32)),
                ('match', models.JSONField(blank=True, editable=False, null=True)),
                ('residual', models.BooleanField(default=False, editable=False)),
                ('namespace', models.CharField(blank=True, default='', editable=False, max_length=100)),
                ('deadline', models.DateTimeField(blank=True, editable=False, null=True)),
                ('then', models.CharField(editable=False, max_length=200)),
                ('on_timeout', models.CharField(editable=False, max_length=200)),
                ('run', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='waits', to='automation_workflows.workflowrun')),
            ],
            options={
                'verbose_name': 'wait',
            },
        ),
        migrations.CreateModel(
            name='StepExecution',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('step', models.CharField(editable=False, max_length=200)),
                ('visit', models.PositiveIntegerField(editable=False)),
                ('attempt', models.PositiveSmallIntegerField(editable=False)),
                ('started', models.DateTimeField(editable=False, null=True)),
                ('finished', models.DateTimeField(editable=False)),
                ('outcome', models.CharField(editable=False, max_length=20)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('wake_reason', models.CharField(default='first', editable=False, max_length=10)),
                ('wake_ref', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('run', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='steps', to='automation_workflows.workflowrun')),
            ],
            options={
                'verbose_name': 'step execution',
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='Signal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('name', models.CharField(editable=False, max_length=200)),
                ('payload', models.JSONField(blank=True, editable=False, null=True)),
                ('sent_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('delivered_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('position', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('consumed_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('run', models.ForeignKey(blank=True, editable=False, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='inbox', to='automation_workflows.workflowrun')),
            ],
            options={
                'verbose_name': 'signal',
                'permissions': [('resume_signal', 'Can resume parked signals'), ('view_data_signal', 'Can view payloads of signals')],
            },
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_run_wake'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_run_parked'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'failed')), fields=['status', 'finished_at'], name='automation_run_failures'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('entity_id__gt', '')), fields=['entity_id', 'entity_type'], name='automation_run_entity'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=models.Index(fields=['name', 'created_at'], name='automation_run_name'),
        ),
        migrations.AddConstraint(
            model_name='workflowrun',
            constraint=models.UniqueConstraint(fields=('origin_key',), name='automation_run_origin'),
        ),
        migrations.AddIndex(
            model_name='wait',
            index=models.Index(fields=['key'], name='automation_wait_key'),
        ),
        migrations.AddIndex(
            model_name='stepexecution',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_ref__isnull', False)), fields=['run', 'wake_ref'], name='automation_step_heard'),
        ),
        migrations.AddIndex(
            model_name='signal',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_signal_wake'),
        ),
        migrations.AddIndex(
            model_name='signal',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('parked_at__isnull', False)), fields=['parked_at'], name='automation_signal_parked'),
        ),
        migrations.AddIndex(
            model_name='signal',
            index=models.Index(fields=['name', 'position'], name='automation_signal_position'),
        ),
    ]
