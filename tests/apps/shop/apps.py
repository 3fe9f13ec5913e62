from django.apps import AppConfig


class ShopConfig(AppConfig):
    """The app of the models in the documentation. It has no models itself: each page declares its own."""

    name = "tests.apps.shop"
    label = "shop"
