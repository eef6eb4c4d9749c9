"""Methods side by side: the same data, backbone, views and budget, the same evaluation, one page of results.

``compare`` is all of it. ``plan`` says which runs there are, ``worker`` is one run in a process of its own, ``runner``
keeps several of them going and survives interruption, ``results`` gathers what they wrote and ``search`` chooses
settings; ``statistics`` (with ``bootstrap``), ``pictures`` (on ``drawing``), ``gallery`` and ``page`` show it.
"""
