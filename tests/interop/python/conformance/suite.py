"""Runs a table of cases against the hub and tells of each in a line of the Test Anything Protocol, which the test that
started the program counts.

A case is a function with a name for people and the rule of Azure's that it checks. It gets a function that makes device
ids which no other case has. Cases run beside each other, as most of them wait for something; one that looks at the hub
as a whole is `alone` and runs after the others.
"""

import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from support import main  # noqa: E402

# Few enough that none is late because of the others.
AT_ONCE = 6


class Suite:
    def __init__(self):
        self.cases = []
        self.speaking = threading.Lock()

    def case(self, name, fact, alone=False):
        """Adds the function below to the table."""

        def add(run):
            self.cases.append((len(self.cases) + 1, name, fact, alone, run))
            return run

        return add

    def run(self):
        main(self.run_all)

    def run_all(self):
        names = {name for _, name, _, _, _ in self.cases}
        assert len(names) == len(self.cases), "every case has a name of its own"
        self.say(f"1..{len(self.cases)}")
        with ThreadPoolExecutor(AT_ONCE) as workers:
            list(workers.map(self.attempt, [each for each in self.cases if not each[3]]))
        for each in self.cases:
            if each[3]:
                self.attempt(each)

    def attempt(self, each):
        number, name, fact, _, run = each
        made = count(1)
        try:
            run(lambda kind="device": f"py-{number}-{kind}-{next(made)}")
            self.say(f"ok {number} - {name}")
        except Exception as error:
            body = getattr(getattr(error, "response", None), "text", "")
            text = f"the fact: {fact}\n{traceback.format_exc()}{body}".rstrip()
            lines = "".join(f"# {line}\n" for line in text.splitlines())
            self.say(f"not ok {number} - {name}\n{lines}".rstrip())

    def say(self, text):
        with self.speaking:
            print(text, flush=True)
