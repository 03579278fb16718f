"""Random clusters in virtual time: the shipped cores of manager, worker and client, and all that lies between them.

A world is its seed.  ``clock`` is time, chance and the story so far; ``net`` the connections, with the shipped
``lfm.protocol.link`` at both ends; ``store`` what a manager's death leaves; ``host``, ``node`` and ``client`` stand
in for the three shells; ``life`` makes a world, troubles it, and knows what must be true.
"""
