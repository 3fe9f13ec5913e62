"""The parts of ``bench/peers.py``.

``main`` takes turns with the ``contestants``: it installs their ``environments``, reaches the ``servers``, and starts
``measure`` once for each figure, in the environment of the contestant. There one of the ``drivers`` knows how to start
a call and its workers; the workers note each call in the ``logbook``. ``results`` keeps the figures, ``plots`` draws
them.
"""
