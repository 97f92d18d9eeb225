"""One file per command.

Every module of this folder is imported to list the commands, so none of them imports torch or Lightning at its top.
"""
