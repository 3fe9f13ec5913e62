import django.db.models.deletion
import django.utils.timezone
import django_ai.automation.db.indexes
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Arrival',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('at', models.DateTimeField(editable=False)),
            ],
            options={
                'verbose_name': 'arrival',
                'verbose_name_plural': 'arrivals',
            },
        ),
        migrations.CreateModel(
            name='Action',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('model', models.CharField(editable=False, max_length=100, verbose_name='model')),
                ('key', models.CharField(editable=False, max_length=300, verbose_name='key')),
                ('what', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='row')),
                ('done', models.CharField(editable=False, max_length=20, verbose_name='action')),
                ('actor', models.CharField(editable=False, max_length=200, verbose_name='actor')),
                ('actor_name', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='who')),
                ('reason', models.TextField(blank=True, default='', editable=False, verbose_name='reason')),
                ('done_at', models.DateTimeField(editable=False, verbose_name='at')),
            ],
            options={
                'verbose_name': 'action',
                'verbose_name_plural': 'actions',
                'indexes': [models.Index(fields=['key', 'model'], name='automation_action_row'), models.Index(fields=['actor'], name='automation_action_actor')],
            },
        ),
        migrations.CreateModel(
            name='BulkAction',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('verb', models.CharField(editable=False, max_length=50, verbose_name='verb')),
                ('row_kind', models.CharField(editable=False, max_length=20, verbose_name='row kind')),
                ('filter', models.JSONField(default=dict, editable=False, verbose_name='filter')),
                ('reason', models.TextField(blank=True, default='', editable=False, verbose_name='reason')),
                ('actor', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='actor')),
                ('actor_name', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='who')),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('running', 'Running'), ('completed', 'Completed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10, verbose_name='status')),
                ('total', models.PositiveIntegerField(default=0, editable=False, verbose_name='total')),
                ('position', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='position')),
                ('last_pk', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='last key')),
                ('done', models.PositiveIntegerField(default=0, editable=False, verbose_name='done')),
                ('refused', models.PositiveIntegerField(default=0, editable=False, verbose_name='refused')),
                ('failed', models.PositiveIntegerField(default=0, editable=False, verbose_name='failed')),
                ('awaiting_code', models.PositiveIntegerField(default=0, editable=False, verbose_name='awaiting code')),
                ('examples', models.JSONField(blank=True, default=list, editable=False, verbose_name='examples')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='created at')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='started at')),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='finished at')),
            ],
            options={
                'verbose_name': 'bulk action',
                'verbose_name_plural': 'bulk actions',
                'permissions': [('resume_bulkaction', 'Can resume bulk actions'), ('cancel_bulkaction', 'Can cancel bulk actions')],
                'indexes': [django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_bulk_wake'), django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_bulk_parked'), models.Index(fields=['finished_at'], name='automation_bulk_finished')],
            },
        ),
        migrations.CreateModel(
            name='HeldRow',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('kind', models.CharField(editable=False, max_length=20, verbose_name='kind')),
                ('row_pk', models.BigIntegerField(editable=False, verbose_name='row key')),
                ('target', models.CharField(editable=False, max_length=300, verbose_name='target')),
                ('due_at', models.DateTimeField(editable=False, verbose_name='due at')),
            ],
            options={
                'verbose_name': 'held row',
                'verbose_name_plural': 'held rows',
                'indexes': [models.Index(fields=['row_pk', 'kind'], name='automation_held_row'), models.Index(fields=['target'], name='automation_held_target')],
            },
        ),
        migrations.CreateModel(
            name='Limiter',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('row_kind', models.CharField(editable=False, max_length=20, verbose_name='row kind')),
                ('name', models.CharField(editable=False, max_length=800, verbose_name='name')),
                ('limit', models.CharField(editable=False, max_length=200, verbose_name='limit')),
                ('value', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='value')),
                ('key', models.CharField(editable=False, max_length=32, verbose_name='key')),
                ('next_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='next at')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='created at')),
            ],
            options={
                'verbose_name': 'limit',
                'verbose_name_plural': 'limits',
                'permissions': [('view_data_limiter', 'Can view keys of limits')],
                'constraints': [models.UniqueConstraint(fields=('key',), name='automation_limiter_key')],
            },
        ),
        migrations.CreateModel(
            name='Maintenance',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('name', models.CharField(editable=False, max_length=100, verbose_name='name')),
                ('position', models.JSONField(blank=True, editable=False, null=True, verbose_name='position')),
                ('completed_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='completed at')),
                ('done', models.BigIntegerField(default=0, editable=False, verbose_name='done')),
                ('failures', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='failures')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
            ],
            options={
                'verbose_name': 'maintenance task',
                'verbose_name_plural': 'maintenance tasks',
                'indexes': [django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_maintenance_wake')],
                'constraints': [models.UniqueConstraint(fields=('name',), name='automation_maintenance_name')],
            },
        ),
        migrations.CreateModel(
            name='MutedProblem',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('key', models.CharField(editable=False, max_length=32, verbose_name='key')),
                ('kind', models.CharField(editable=False, max_length=50, verbose_name='kind')),
                ('name', models.CharField(blank=True, default='', editable=False, max_length=800, verbose_name='name')),
                ('state', models.CharField(editable=False, max_length=10, verbose_name='state')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('reason', models.TextField(blank=True, default='', editable=False, verbose_name='reason')),
                ('actor', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='actor')),
                ('actor_name', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='who')),
                ('muted_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='muted at')),
                ('until', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='until')),
            ],
            options={
                'verbose_name': 'muted problem',
                'verbose_name_plural': 'problems',
                'default_permissions': ('add', 'delete', 'view'),
                'constraints': [models.UniqueConstraint(fields=('key',), name='automation_muted_problem')],
            },
        ),
        migrations.CreateModel(
            name='Pause',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('target', models.CharField(max_length=300, verbose_name='target')),
                ('row_kind', models.CharField(blank=True, default='', editable=False, max_length=20, verbose_name='row kind')),
                ('row_pk', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='row key')),
                ('reason', models.TextField(blank=True, default='', verbose_name='reason')),
                ('paused_at', models.DateTimeField(editable=False, verbose_name='paused at')),
            ],
            options={
                'verbose_name': 'pause',
                'verbose_name_plural': 'pauses',
                'permissions': [('end_pause', 'Can end pauses')],
                'indexes': [models.Index(fields=['row_pk'], name='automation_pause_row')],
                'constraints': [models.UniqueConstraint(fields=('target',), name='automation_pause_target')],
            },
        ),
        migrations.CreateModel(
            name='Worker',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(editable=False, max_length=100, verbose_name='name')),
                ('runtime', models.CharField(editable=False, max_length=50, verbose_name='runtime')),
                ('host', models.CharField(editable=False, max_length=60, verbose_name='host')),
                ('pid', models.PositiveBigIntegerField(editable=False, verbose_name='pid')),
                ('kinds', models.CharField(blank=True, default='', editable=False, max_length=500, verbose_name='kinds')),
                ('queues', models.TextField(blank=True, default='', editable=False, verbose_name='queues')),
                ('started_at', models.DateTimeField(editable=False, verbose_name='started at')),
                ('seen_at', models.DateTimeField(editable=False, verbose_name='seen at')),
                ('stopped_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='stopped at')),
                ('worked', models.JSONField(blank=True, default=dict, editable=False, verbose_name='worked')),
                ('performed', models.BigIntegerField(default=0, editable=False, verbose_name='performed')),
            ],
            options={
                'verbose_name': 'worker',
                'verbose_name_plural': 'workers',
                'indexes': [models.Index(fields=['seen_at'], name='automation_worker_seen')],
                'constraints': [models.UniqueConstraint(fields=('name',), name='automation_worker_name')],
            },
        ),
        migrations.CreateModel(
            name='Slot',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('row_kind', models.CharField(editable=False, max_length=20)),
                ('row_pk', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('state', models.CharField(choices=[('queued', 'Queued'), ('held', 'Held'), ('released', 'Released'), ('timer', 'Timer')], default='queued', editable=False, max_length=10)),
                ('term', models.CharField(choices=[('execution', 'Execution'), ('start', 'Start'), ('life', 'Life'), ('period', 'Period')], default='execution', editable=False, max_length=10)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('expires_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('unique_key', models.CharField(blank=True, editable=False, max_length=32, null=True)),
                ('limiter', models.ForeignKey(db_constraint=False, db_index=False, editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='automation_queues.limiter')),
            ],
            options={
                'verbose_name': 'slot of a limit',
                'verbose_name_plural': 'slots of limits',
                'indexes': [django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_slot_wake'), models.Index(fields=['limiter', 'state', 'id'], name='automation_slot_queue'), models.Index(fields=['row_pk', 'row_kind'], name='automation_slot_row')],
                'constraints': [models.UniqueConstraint(fields=('unique_key',), name='automation_slot_unique')],
            },
        ),
    ]
