"""Attacks in turn: each has its own outcome, and one that ends its child does not end the others."""

import os
import sys

import attack
from attack import attack_in_turn


def refuse():
    print("error: no", file=sys.stderr)
    sys.exit(1)


def spin():
    while True:
        pass


def test_each_has_the_outcome_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(attack, "SECONDS", 1)
    works = {
        "refused": refuse,
        "traceback": lambda: [][0],
        "accepted": lambda: os._exit(attack.ACCEPTED),
        "left something behind": lambda: (tmp_path / "x").touch() or refuse(),
        "hang": spin,
        "unclear": lambda: sys.exit(1),
    }
    outcomes = attack_in_turn(works | {"and again": refuse}, tmp_path)
    assert outcomes.pop("and again") == attack.Outcome(1, "error: no\n", frozenset())
    assert {name: outcome.verdict for name, outcome in outcomes.items()} == {name: name for name in works}
