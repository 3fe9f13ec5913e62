from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The app that the models of the documentation belong to. It has none of its own: each page declares them."""

    name = "tests.apps.shop"
    label = "shop"
