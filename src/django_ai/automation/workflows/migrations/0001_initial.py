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
            name='WorkflowRun',
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
                ('status', models.CharField(choices=[('running', 'Running'), ('waiting', 'Waiting'), ('suspended', 'Suspended'), ('completed', 'Completed'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('withdrawn', 'Withdrawn'), ('parked', 'Parked')], default='running', editable=False, max_length=10, verbose_name='status')),
                ('current_step', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='current step')),
                ('data', models.JSONField(blank=True, default=dict, editable=False, verbose_name='data')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('visit', models.PositiveIntegerField(default=1, editable=False, verbose_name='visit')),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32, verbose_name='call key')),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='attempt')),
                ('deferrals', models.PositiveIntegerField(default=0, editable=False, verbose_name='deferrals')),
                ('failed_evaluations', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='failed evaluations')),
                ('progress', models.FloatField(blank=True, editable=False, null=True, verbose_name='progress')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='created at')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='started at')),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='finished at')),
                ('deadline', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='deadline')),
                ('planned', models.BooleanField(default=False, editable=False, verbose_name='planned')),
                ('entity_type', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='entity type')),
                ('entity_id', models.CharField(blank=True, default='', editable=False, max_length=255, verbose_name='entity id')),
                ('origin_key', models.CharField(blank=True, editable=False, max_length=32, null=True, verbose_name='origin key')),
                ('parent_channel', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='parent channel')),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='caused by')),
                ('trace_context', models.CharField(blank=True, default=django_ai.automation.queues.tracing.current_trace_context, editable=False, max_length=255, null=True, verbose_name='trace context')),
                ('depth', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='depth')),
                ('holds_claims', models.BooleanField(default=False, editable=False, verbose_name='holds claims')),
                ('position', models.BigIntegerField(default=0, editable=False, verbose_name='position')),
                ('wake_reason', models.CharField(default='first', editable=False, max_length=10, verbose_name='wake reason')),
                ('wake_ref', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='wake ref')),
                ('wake_step', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='wake step')),
                ('branches', models.JSONField(blank=True, editable=False, null=True, verbose_name='branches')),
                ('ending', models.JSONField(blank=True, editable=False, null=True, verbose_name='ending')),
                ('event', models.ForeignKey(blank=True, db_index=False, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='workflow_runs', to='automation_events.event', verbose_name='event')),
                ('parent', models.ForeignKey(blank=True, db_index=False, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='children', to='automation_workflows.workflowrun', verbose_name='parent')),
            ],
            options={
                'verbose_name': 'workflow run',
                'verbose_name_plural': 'workflow runs',
                'permissions': [('resume_workflowrun', 'Can resume workflow runs'), ('cancel_workflowrun', 'Can cancel workflow runs'), ('pause_workflowrun', 'Can pause workflow runs'), ('start_workflowrun', 'Can start workflow runs'), ('signal_workflowrun', 'Can send signals to workflow runs'), ('edit_workflowrun', 'Can edit Contexts of workflow runs, and fork runs'), ('view_data_workflowrun', 'Can view Contexts of workflow runs')],
            },
        ),
        migrations.CreateModel(
            name='Wait',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('visit', models.PositiveIntegerField(editable=False)),
                ('branch', models.CharField(blank=True, default='', editable=False, max_length=50)),
                ('channel', models.CharField(editable=False, max_length=210)),
                ('key', models.CharField(editable=False, max_length=32)),
                ('match', models.JSONField(blank=True, editable=False, null=True)),
                ('residual', models.BooleanField(default=False, editable=False)),
                ('namespace', models.CharField(blank=True, default='', editable=False, max_length=100)),
                ('deadline', models.DateTimeField(blank=True, editable=False, null=True)),
                ('since', models.BigIntegerField(default=0, editable=False)),
                ('then', models.CharField(editable=False, max_length=200)),
                ('on_timeout', models.CharField(editable=False, max_length=200)),
                ('run', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='waits', to='automation_workflows.workflowrun')),
            ],
            options={
                'verbose_name': 'wait',
                'verbose_name_plural': 'waits',
            },
        ),
        migrations.CreateModel(
            name='StepExecution',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('step', models.CharField(editable=False, max_length=200, verbose_name='step')),
                ('visit', models.PositiveIntegerField(editable=False, verbose_name='visit')),
                ('attempt', models.PositiveSmallIntegerField(editable=False, verbose_name='attempt')),
                ('started', models.DateTimeField(editable=False, null=True, verbose_name='started')),
                ('finished', models.DateTimeField(editable=False, verbose_name='finished')),
                ('outcome', models.CharField(editable=False, max_length=20, verbose_name='outcome')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('wake_reason', models.CharField(default='first', editable=False, max_length=10, verbose_name='wake reason')),
                ('wake_ref', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='wake ref')),
                ('before', models.JSONField(blank=True, editable=False, null=True, verbose_name='before the visit')),
                ('run', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='steps', to='automation_workflows.workflowrun', verbose_name='run')),
            ],
            options={
                'verbose_name': 'step execution',
                'verbose_name_plural': 'step executions',
                'ordering': ['pk'],
            },
        ),
        migrations.CreateModel(
            name='Signal',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('name', models.CharField(editable=False, max_length=200, verbose_name='name')),
                ('payload', models.JSONField(blank=True, editable=False, null=True, verbose_name='payload')),
                ('sent_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='sent at')),
                ('delivered_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='delivered at')),
                ('position', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='position')),
                ('consumed_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='consumed at')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='caused by')),
                ('run', models.ForeignKey(blank=True, db_index=False, editable=False, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='inbox', to='automation_workflows.workflowrun', verbose_name='run')),
            ],
            options={
                'verbose_name': 'signal',
                'verbose_name_plural': 'signals',
                'permissions': [('resume_signal', 'Can resume parked signals'), ('view_data_signal', 'Can view payloads of signals')],
            },
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('priority', 0), ('queue', ''), ('wake_at__isnull', False)), elsewhere=['queue', 'priority', 'wake_at'], fields=['wake_at'], name='automation_run_wake'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialOnlyIndex(condition=models.Q(('wake_at__isnull', False), models.Q(('priority', 0), ('queue', ''), _negated=True)), fields=['queue', 'priority', 'wake_at'], name='automation_run_lanes'),
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
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('finished_at__isnull', False)), fields=['finished_at', 'status', 'planned', 'created_at', 'started_at'], name='automation_run_ended'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('entity_id__gt', '')), fields=['entity_id', 'entity_type'], name='automation_run_entity'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=models.Index(fields=['name', 'created_at'], name='automation_run_name'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('event__isnull', False)), fields=['event'], name='automation_run_event'),
        ),
        migrations.AddIndex(
            model_name='workflowrun',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('parent__isnull', False)), fields=['parent'], name='automation_run_parent'),
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
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_ref__isnull', False)), fields=['run', 'wake_ref'], name='automation_step_consumed'),
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
        migrations.AddIndex(
            model_name='signal',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('run__isnull', False)), fields=['run'], name='automation_signal_run'),
        ),
    ]
