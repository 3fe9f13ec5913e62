from django.db import migrations


class Migration(migrations.Migration):

    initial = True

    dependencies = [
        ('automation_queues', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='Agenda',
            fields=[
            ],
            options={
                'verbose_name': 'agenda',
                'verbose_name_plural': 'agenda',
                'proxy': True,
                'default_permissions': ('view',),
                'indexes': [],
                'constraints': [],
            },
            bases=('automation_queues.worker',),
        ),
        migrations.CreateModel(
            name='Catalogue',
            fields=[
            ],
            options={
                'verbose_name': 'catalogue',
                'verbose_name_plural': 'catalogue',
                'proxy': True,
                'default_permissions': ('view',),
                'indexes': [],
                'constraints': [],
            },
            bases=('automation_queues.worker',),
        ),
        migrations.CreateModel(
            name='Overview',
            fields=[
            ],
            options={
                'verbose_name': 'overview',
                'verbose_name_plural': 'overview',
                'proxy': True,
                'default_permissions': ('view',),
                'indexes': [],
                'constraints': [],
            },
            bases=('automation_queues.worker',),
        ),
        migrations.CreateModel(
            name='Queues',
            fields=[
            ],
            options={
                'verbose_name': 'queues and limits',
                'verbose_name_plural': 'queues and limits',
                'proxy': True,
                'default_permissions': ('view',),
                'indexes': [],
                'constraints': [],
            },
            bases=('automation_queues.limiter',),
        ),
    ]
