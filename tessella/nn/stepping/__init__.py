"""Fast stepping along a grid: a model's cached state, and the work per pixel as a program.

Sampling visits one symbol after another, and each step repeats the same small products on memory
that moves by one place. So a model writes this work down once, as a list of operations, and runs
the list at every step. The modules build on one another in this order:

* ``state``: the cached state of a walk, a plain value that can be copied;
* ``memory``: the operands of operations, tensors and views that move with the walk;
* ``operation`` and ``program``: the list of operations, and the methods that append to it;
* ``runners``, ``compiled`` and ``torch_operations``: the ways to run the list;
* ``step``: the programs of a whole step, to which the layers of a model append.
"""
