"""The verbs, in the order of the help."""

from __future__ import annotations

from .baseline import Baseline
from .completion import Completion
from .events import FireNow, Move, Redeliver, Release
from .explaining import WhyVerb
from .forgetting import Forget
from .graphs import Graph
from .listing import List, Problems
from .many import Bulk, Mute, Unmute
from .pausing import PauseThem, UnpauseThem
from .planning import Plan
from .repairs import EditContext, Fork, Rewind, SkipWait
from .resuming import Resume
from .rows import Cancel, Complete, TryNow
from .showing import Show
from .starting import Signal, Spawn, Start
from .verb import Verb

VERBS: dict[str, type[Verb]] = {
    verb.name: verb
    for verb in (
        List,
        Show,
        WhyVerb,
        Problems,
        Plan,
        Graph,
        Start,
        Spawn,
        Signal,
        Cancel,
        Complete,
        Resume,
        TryNow,
        SkipWait,
        EditContext,
        Fork,
        Rewind,
        Bulk,
        Mute,
        Unmute,
        PauseThem,
        UnpauseThem,
        FireNow,
        Move,
        Redeliver,
        Release,
        Forget,
        Baseline,
        Completion,
    )
}
Completion.verbs = lambda: VERBS
