"""What the checks of both Python clients share: running them in order, one line for each."""

import sys


def run(stages):
    """Runs the checks of the stage that is named on the command line; ends with 1 at the first that fails."""
    for name, check in stages[sys.argv[1]]:
        try:
            check()
        except Exception as error:
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
            sys.exit(1)
        print(f"ok {name}", flush=True)


def want(what, got, expected):
    assert got == expected, f"{what} is {got!r} instead of {expected!r}"


def refused(what, error, call):
    """The exception that the call must end in."""
    try:
        answer = call()
    except error as raised:
        return raised
    raise AssertionError(f"{what} was answered with {answer!r} instead of {error.__name__}")
