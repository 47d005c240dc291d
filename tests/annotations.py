"""The checker that the tests put on every function of the package, see conftest.py."""

from beartype import BeartypeConf, beartype

# Where a float is asked for an int will do, as everywhere in Python.
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
