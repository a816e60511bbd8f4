"""Programs measured on a GPU, side by side; run `python -m bench gpu --help`.

Nothing in here has run on a GPU yet: the logic is tested on CPU, with clocks that are made up.

    clock       how long a call takes, by the profiler and on the clock, and in which turns
    roofline    what the device could do at most
    checks      parity of a problem
    cases       one program in several implementations: compiled, compared, timed
    suite_ops, suite_model, suite_parity    the suites
    report, plots, compare                  what is made of a record
"""
