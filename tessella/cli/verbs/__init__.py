"""One module for each verb of the command line, imported when the verb runs.

To add a verb: write ``verbs/NAME.py`` with a function ``run(command)`` that returns the exit
status, and a dataclass of its options in ``tessella/cli/verb_options.py``, where ``VERBS`` lists
it.
"""
