"""From a callable to what a worker needs to run it: its imports, environment, own modules, pickle, arguments.

``pack`` is the door; ``analyse`` finds what is needed, ``resolve`` which distributions that is, ``overlay``
gathers the user's own modules, ``pickling`` makes the bytes.  Knows nothing of networks, managers or workers.
"""
