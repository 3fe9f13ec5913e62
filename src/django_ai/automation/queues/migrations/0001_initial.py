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
            name='Worker',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(editable=False, max_length=100, verbose_name='name')),
                ('runtime', models.CharField(editable=False, max_length=50, verbose_name='runtime')),
                ('host', models.CharField(editable=False, max_length=60, verbose_name='host')),
                ('pid', models.PositiveBigIntegerField(editable=False, verbose_name='pid')),
                ('queues', models.CharField(blank=True, default='', editable=False, max_length=500, verbose_name='queues')),
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
    ]
