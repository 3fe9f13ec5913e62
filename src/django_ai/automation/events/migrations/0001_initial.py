import django.db.models.deletion
import django.utils.timezone
import django_ai.automation.db.indexes
import django_ai.automation.values.digests
from django.db import migrations, models


class Migration(migrations.Migration):

    initial = True

    dependencies = [
    ]

    operations = [
        migrations.CreateModel(
            name='Snapshot',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('taken_at', models.DateTimeField(editable=False)),
                ('data', models.JSONField(editable=False)),
            ],
            options={
                'verbose_name': 'snapshot',
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='EventClaim',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('event_name', models.CharField(editable=False, max_length=200)),
                ('namespace', models.CharField(blank=True, default='', editable=False, max_length=100)),
                ('match', models.JSONField(blank=True, default=dict, editable=False)),
                ('residual', models.JSONField(blank=True, default=dict, editable=False)),
                ('key', models.CharField(editable=False, max_length=32)),
                ('unique_key', models.CharField(editable=False, max_length=32)),
                ('owner_kind', models.CharField(editable=False, max_length=20)),
                ('owner_id', models.BigIntegerField(editable=False)),
                ('priority', models.IntegerField(default=0, editable=False)),
                ('held_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('expires_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('events_left', models.PositiveIntegerField(blank=True, editable=False, null=True)),
                ('counted', models.JSONField(blank=True, default=list, editable=False)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
            ],
            options={
                'verbose_name': 'claim',
                'permissions': [('view_data_eventclaim', 'Can view what claims compare')],
                'indexes': [models.Index(fields=['key'], name='automation_claim_key'), models.Index(fields=['owner_kind', 'owner_id'], name='automation_claim_owner')],
                'constraints': [models.UniqueConstraint(fields=('unique_key',), name='automation_claim_unique')],
            },
        ),
        migrations.CreateModel(
            name='RoutingShape',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('used_by', models.CharField(editable=False, max_length=10)),
                ('event_name', models.CharField(editable=False, max_length=200)),
                ('shape', models.CharField(editable=False, max_length=500)),
                ('unique_key', models.CharField(editable=False, max_length=32)),
            ],
            options={
                'indexes': [models.Index(fields=['event_name'], name='automation_shape_event')],
                'constraints': [models.UniqueConstraint(fields=('unique_key',), name='automation_shape_key')],
            },
        ),
        migrations.CreateModel(
            name='Event',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('entity_type', models.CharField(editable=False, max_length=200)),
                ('entity_id', models.CharField(editable=False, max_length=255)),
                ('event_name', models.CharField(editable=False, max_length=200)),
                ('declared_as', models.CharField(editable=False, max_length=200)),
                ('namespace', models.CharField(blank=True, default='', editable=False, max_length=100)),
                ('trigger', models.CharField(blank=True, default='', editable=False, max_length=10)),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('processed', 'Processed'), ('cancelled', 'Cancelled'), ('expired', 'Expired'), ('parked', 'Parked')], default='pending', editable=False, max_length=10)),
                ('at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('event_created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('occurred_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('armed', models.BooleanField(default=False, editable=False)),
                ('fired', models.JSONField(blank=True, default=list, editable=False)),
                ('position', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('fired_position', models.BigIntegerField(blank=True, editable=False, null=True)),
                ('milestone_positions', models.JSONField(blank=True, default=dict, editable=False)),
                ('pending_notifications', models.JSONField(blank=True, default=list, editable=False)),
                ('watched', models.CharField(blank=True, default='', editable=False, max_length=32)),
                ('planned_for', models.CharField(blank=True, default='', editable=False, max_length=32)),
                ('payload', models.JSONField(blank=True, editable=False, null=True)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200)),
                ('depth', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('active_key', models.CharField(blank=True, editable=False, max_length=32, null=True)),
                ('snapshot', models.ForeignKey(blank=True, db_index=False, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='automation_events.snapshot')),
            ],
            options={
                'verbose_name': 'event',
                'permissions': [('resume_event', 'Can resume parked events'), ('cancel_event', 'Can cancel pending events'), ('view_data_event', 'Can view payloads and snapshots of events')],
            },
        ),
        migrations.CreateModel(
            name='CallbackExecution',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('callback', models.CharField(editable=False, max_length=250)),
                ('milestone', models.CharField(blank=True, default='', editable=False, max_length=250)),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('completed', 'Completed'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10)),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32)),
                ('error', models.TextField(blank=True, default='', editable=False)),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False)),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('unique_key', models.CharField(editable=False, max_length=32)),
                ('event', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='executions', to='automation_events.event')),
            ],
            options={
                'verbose_name': 'callback execution',
                'permissions': [('resume_callbackexecution', 'Can resume callback executions')],
                'indexes': [django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_callback_wake'), django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_callback_parked'), django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'failed')), fields=['status', 'finished_at'], name='automation_callback_failures')],
                'constraints': [models.UniqueConstraint(fields=('unique_key',), name='automation_callback_unique')],
            },
        ),
        migrations.AddIndex(
            model_name='event',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_event_wake'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('status', 'parked')), fields=['parked_at'], name='automation_event_parked'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['entity_id', 'entity_type', 'event_name'], name='automation_event_entity'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['event_name', 'position'], name='automation_event_position'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('snapshot__isnull', False)), fields=['event_name', 'entity_type', 'position'], name='automation_event_deleted'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('snapshot__isnull', False)), fields=['snapshot'], name='automation_event_snapshot'),
        ),
        migrations.AddConstraint(
            model_name='event',
            constraint=models.UniqueConstraint(fields=('active_key',), name='automation_event_active'),
        ),
    ]
