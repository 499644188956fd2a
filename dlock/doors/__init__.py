"""The doors: what speaks the protocols of other lock services and answers from a dlock server.

Each is a process of its own, `dlock door KIND`, and a client like any other: it uses the public API
and nothing else. What all of them share is here, each kind has a package of its own, whose
`make(words, environ)` gives its `Door`. docs/doors.md.
"""
