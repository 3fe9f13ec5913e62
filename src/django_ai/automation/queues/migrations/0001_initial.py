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
            name='Worker',
            fields=[
                ('id', models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name='ID')),
                ('name', models.CharField(editable=False, max_length=100)),
                ('started_at', models.DateTimeField(editable=False)),
                ('worked_at', models.DateTimeField(editable=False)),
                ('performed', models.BigIntegerField(default=0, editable=False)),
            ],
            options={
                'verbose_name': 'worker',
                'indexes': [models.Index(fields=['worked_at'], name='automation_worker_at')],
                'constraints': [models.UniqueConstraint(fields=('name',), name='automation_worker_name')],
            },
        ),
    ]
