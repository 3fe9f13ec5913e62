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
            },
        ),
        migrations.CreateModel(
            name='Maintenance',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('wake_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('lease', models.CharField(blank=True, editable=False, max_length=100, null=True)),
                ('seq', models.PositiveIntegerField(default=0, editable=False)),
                ('losses', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('parked_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('name', models.CharField(editable=False, max_length=100)),
                ('position', models.JSONField(blank=True, editable=False, null=True)),
                ('completed_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('done', models.BigIntegerField(default=0, editable=False)),
                ('failures', models.PositiveSmallIntegerField(default=0, editable=False)),
                ('error', models.TextField(blank=True, default='', editable=False)),
            ],
            options={
                'verbose_name': 'maintenance task',
                'indexes': [django_ai.automation.db.indexes.PartialIndex(condition=models.Q(('wake_at__isnull', False)), fields=['wake_at'], name='automation_maintenance_wake')],
                'constraints': [models.UniqueConstraint(fields=('name',), name='automation_maintenance_name')],
            },
        ),
        migrations.CreateModel(
            name='Worker',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(editable=False, max_length=100)),
                ('runtime', models.CharField(editable=False, max_length=50)),
                ('host', models.CharField(editable=False, max_length=60)),
                ('pid', models.PositiveBigIntegerField(editable=False)),
                ('queues', models.CharField(blank=True, default='', editable=False, max_length=500)),
                ('started_at', models.DateTimeField(editable=False)),
                ('seen_at', models.DateTimeField(editable=False)),
                ('stopped_at', models.DateTimeField(blank=True, editable=False, null=True)),
                ('worked', models.JSONField(blank=True, default=dict, editable=False)),
                ('performed', models.BigIntegerField(default=0, editable=False)),
            ],
            options={
                'verbose_name': 'worker',
                'indexes': [models.Index(fields=['seen_at'], name='automation_worker_seen')],
                'constraints': [models.UniqueConstraint(fields=('name',), name='automation_worker_name')],
            },
        ),
    ]
