// An empty program, of the module kind of the `qformer` command: what Node itself takes to start and to end.
