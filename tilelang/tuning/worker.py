"""The other end of `processes.Processes`: reads jobs from the standard input, writes what they give."""
from __future__ import annotations

import os
import pickle
import sys
from typing import Any


def main() -> None:
    """Until the input ends."""
    jobs, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a job prints must not mix with the answers
    while True:
        try:
            fn, args, kwargs = pickle.load(jobs)
        except EOFError:
            return
        try:
            answer: tuple[bool, Any] = True, fn(*args, **kwargs)
            data = pickle.dumps(answer)
        except Exception as error:
            data = pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}")))
        answers.write(data)
        answers.flush()


if __name__ == "__main__":
    main()
