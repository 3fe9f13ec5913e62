"""``why(subject, subscriber)``: why a subscriber acted on an event, will act, or did not, condition by condition.

``answers`` has what it returns, ``asking`` asks the layers, and each layer has an explainer for its own subscribers:
``event_conditions`` and ``callbacks`` here, ``workflows/why.py`` and ``agents/why.py`` above.
"""

from .answers import Answer, Condition, Standing, Why
from .asking import why

__all__ = ["Answer", "Condition", "Standing", "Why", "why"]
