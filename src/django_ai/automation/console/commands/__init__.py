"""The verbs of ``manage.py automation``. ``verbs`` lists them; each calls a function that projects call, too."""
