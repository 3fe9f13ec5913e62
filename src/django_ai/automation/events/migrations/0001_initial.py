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
                'verbose_name_plural': 'snapshots',
                'default_permissions': (),
            },
        ),
        migrations.CreateModel(
            name='EventClaim',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('event_name', models.CharField(editable=False, max_length=200, verbose_name='event name')),
                ('namespace', models.CharField(blank=True, default='', editable=False, max_length=100, verbose_name='namespace')),
                ('match', models.JSONField(blank=True, default=dict, editable=False, verbose_name='match')),
                ('residual', models.JSONField(blank=True, default=dict, editable=False, verbose_name='residual')),
                ('key', models.CharField(editable=False, max_length=32, verbose_name='key')),
                ('unique_key', models.CharField(editable=False, max_length=32, verbose_name='unique key')),
                ('owner_kind', models.CharField(editable=False, max_length=20, verbose_name='owner kind')),
                ('owner_id', models.BigIntegerField(editable=False, verbose_name='owner id')),
                ('priority', models.IntegerField(default=0, editable=False, verbose_name='priority')),
                ('held_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='held at')),
                ('expires_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='expires at')),
                ('events_left', models.PositiveIntegerField(blank=True, editable=False, null=True, verbose_name='events left')),
                ('counted', models.JSONField(blank=True, default=list, editable=False, verbose_name='counted')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
            ],
            options={
                'verbose_name': 'claim',
                'verbose_name_plural': 'claims',
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
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('entity_type', models.CharField(editable=False, max_length=200, verbose_name='entity type')),
                ('entity_id', models.CharField(editable=False, max_length=255, verbose_name='entity id')),
                ('event_name', models.CharField(editable=False, max_length=200, verbose_name='event name')),
                ('declared_as', models.CharField(editable=False, max_length=200, verbose_name='declared as')),
                ('namespace', models.CharField(blank=True, default='', editable=False, max_length=100, verbose_name='namespace')),
                ('trigger', models.CharField(blank=True, default='', editable=False, max_length=10, verbose_name='trigger')),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('processed', 'Processed'), ('cancelled', 'Cancelled'), ('expired', 'Expired'), ('parked', 'Parked')], default='pending', editable=False, max_length=10, verbose_name='status')),
                ('at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='at')),
                ('event_created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='event created at')),
                ('occurred_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='occurred at')),
                ('armed', models.BooleanField(default=False, editable=False, verbose_name='armed')),
                ('fired', models.JSONField(blank=True, default=list, editable=False, verbose_name='fired')),
                ('position', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='position')),
                ('fired_position', models.BigIntegerField(blank=True, editable=False, null=True, verbose_name='fired position')),
                ('milestone_positions', models.JSONField(blank=True, default=dict, editable=False, verbose_name='milestone positions')),
                ('pending_notifications', models.JSONField(blank=True, default=list, editable=False, verbose_name='pending notifications')),
                ('watched', models.CharField(blank=True, default='', editable=False, max_length=32, verbose_name='watched')),
                ('planned_for', models.CharField(blank=True, default='', editable=False, max_length=32, verbose_name='planned for')),
                ('payload', models.JSONField(blank=True, editable=False, null=True, verbose_name='payload')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='attempt')),
                ('caused_by', models.CharField(blank=True, default='', editable=False, max_length=200, verbose_name='caused by')),
                ('depth', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='depth')),
                ('active_key', models.CharField(blank=True, editable=False, max_length=32, null=True, verbose_name='active key')),
                ('snapshot', models.ForeignKey(blank=True, db_index=False, editable=False, null=True, on_delete=django.db.models.deletion.SET_NULL, related_name='+', to='automation_events.snapshot', verbose_name='snapshot')),
            ],
            options={
                'verbose_name': 'event',
                'verbose_name_plural': 'events',
                'permissions': [('resume_event', 'Can resume parked events'), ('cancel_event', 'Can cancel pending events'), ('view_data_event', 'Can view payloads and snapshots of events')],
            },
        ),
        migrations.CreateModel(
            name='CallbackExecution',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='wake at')),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True, verbose_name='lease')),
                ('seq', models.PositiveIntegerField(default=0, editable=False, verbose_name='seq')),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='losses')),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='parked at')),
                ('callback', models.CharField(editable=False, max_length=250, verbose_name='callback')),
                ('milestone', models.CharField(blank=True, default='', editable=False, max_length=250, verbose_name='milestone')),
                ('status', models.CharField(choices=[('pending', 'Pending'), ('completed', 'Completed'), ('failed', 'Failed'), ('cancelled', 'Cancelled'), ('parked', 'Parked')], default='pending', editable=False, max_length=10, verbose_name='status')),
                ('attempt', models.PositiveSmallIntegerField(default=0, editable=False, verbose_name='attempt')),
                ('call_key', models.CharField(default=django_ai.automation.values.digests.new_call_key, editable=False, max_length=32, verbose_name='call key')),
                ('error', models.TextField(blank=True, default='', editable=False, verbose_name='error')),
                ('created_at', models.DateTimeField(default=django.utils.timezone.now, editable=False, verbose_name='created at')),
                ('started_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='started at')),
                ('finished_at', models.DateTimeField(blank=True, editable=False, null=True, verbose_name='finished at')),
                ('unique_key', models.CharField(editable=False, max_length=32, verbose_name='unique key')),
                ('event', models.ForeignKey(editable=False, on_delete=django.db.models.deletion.CASCADE, related_name='executions', to='automation_events.event', verbose_name='event')),
            ],
            options={
                'verbose_name': 'callback execution',
                'verbose_name_plural': 'callback executions',
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
