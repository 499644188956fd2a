"""A small virtual machine with soft-RoCE, for machines without an RDMA device.

`python3 scripts/guest prepare` fetches what it needs, once; `python3 scripts/guest run COMMAND`
boots it, runs the command in it and brings its output and its exit status back;
`python3 scripts/guest devices KIND` makes RDMA devices, inside. docs/rdma.md tells more. Nothing
here needs more than Python itself: it runs before dlock is built.
"""
