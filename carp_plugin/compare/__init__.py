"""Methods side by side: the same data, backbone, views and budget, the same evaluation, one page of results.

``plan`` says which runs there are, ``worker`` is one run in a process of its own, ``runner`` keeps several of them
going and survives interruption, ``results`` gathers what they wrote; ``statistics``, ``pictures``, ``gallery`` and
``page`` show it.
"""
