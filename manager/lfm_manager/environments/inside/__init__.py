"""Programs that another interpreter runs: the user's, or the packed one.

Each is a script by itself: standard library only, imports nothing of ours, reads JSON on stdin, answers JSON.
"""
