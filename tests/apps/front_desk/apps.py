from django.apps import AppConfig


class FrontDeskConfig(AppConfig):
    name = "tests.apps.front_desk"
    label = "desk"
