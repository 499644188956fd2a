"""The control plane: who is a client, which names are which locks and objects.

messages (declarations), codec (bytes <-> messages), registry (a pure state machine), state_dir
(what survives a restart), loop (the only one with sockets), link (the client's side).
"""
