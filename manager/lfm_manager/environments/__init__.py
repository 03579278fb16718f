"""Environments: from a plan of what a function needs to a tarball that runs on any node of its architecture.

``build`` is the program that does it, always in a process of its own; ``store`` is where the tarballs lie.
Nothing here imports a package of the user's: what must be known about them is read from their files or asked
of their interpreter.
"""
