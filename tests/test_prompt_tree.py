"""The tree of runs: prompts that begin alike share what they have in common, and no run is ever split."""

from __future__ import annotations

from tourkit.engine.prompt_tree import PromptTree, Run, run_name


def prompt(text: str) -> list[int]:
    return list(text.encode())


def keep(tree: PromptTree, text: str) -> list[Run]:
    """Insert a prompt and pretend that RAM holds the cells of all its runs."""
    runs = tree.insert(prompt(text), now=1)
    for run in runs:
        run.cells = run.cells or bytearray(1)
    return runs


def texts(runs: list[Run]) -> list[str]:
    return [bytes(run.tokens.tolist()).decode() for run in runs]


def test_a_prompt_is_cut_into_runs_of_at_most_the_longest() -> None:
    tree = PromptTree(longest=4)

    assert texts(keep(tree, "abcdefghij")) == ["abcd", "efgh", "ij"]
    assert [(step.run.start, step.end) for step in tree.find(prompt("abcdefghij"))] == [(0, 4), (4, 8), (8, 10)]


def test_a_prompt_that_differs_inside_a_run_goes_on_from_there() -> None:
    """The second prompt adds a run for its own part alone. The first four cells of "abcdef" serve both."""
    tree = PromptTree(longest=100)
    keep(tree, "abcdef")

    assert texts(keep(tree, "abcdXY")) == ["abcdef", "XY"]
    assert [step.end for step in tree.find(prompt("abcdXYZ"))] == [4, 6]
    assert [step.end for step in tree.find(prompt("abcdefg"))] == [6]
    assert [step.end for step in tree.find(prompt("abcX"))] == [3]
    assert tree.find(prompt("Xabc")) == []


def test_many_prompts_may_go_on_from_one_run() -> None:
    tree = PromptTree(longest=100)
    keep(tree, "system: ")
    for letter in "abcdef":
        keep(tree, f"system: {letter * 5}")

    assert len(tree) == 7
    assert all(tree.find(prompt(f"system: {letter * 5}"))[-1].end == 13 for letter in "abcdef")


def test_a_run_that_is_only_remembered_is_cut_where_the_next_prompt_differs() -> None:
    tree = PromptTree(longest=100)
    (remembered,) = tree.insert(prompt("abcdef"), now=5)
    remembered.interval = 7

    runs = tree.insert(prompt("abcX"), now=9)

    assert texts(runs) == ["abc", "X"]
    assert [(run.last, run.interval) for run in runs] == [(5, 7), (9, None)]
    assert len(tree) == 2


def test_the_name_of_a_run_stands_for_all_tokens_up_to_its_end() -> None:
    tree = PromptTree(longest=3)
    first, second = keep(tree, "abcdef")
    other = keep(tree, "xbcdef")

    assert second.name == run_name(first.name, 3, second.tokens)
    assert tree.get(second.name) is second
    assert second.name not in {run.name for run in other}


def test_removing_a_run_forgets_what_goes_on_from_it() -> None:
    tree = PromptTree(longest=2)
    runs = keep(tree, "abcdef")
    keep(tree, "abXY")

    tree.remove(runs[1])

    assert [step.end for step in tree.find(prompt("abcdef"))] == [2]
    assert [step.end for step in tree.find(prompt("abXY"))] == [2, 4]
    assert len(tree) == 2
