"""Which rows give vectors, choose settings and report: train, dev and test, in the ratio 2:1:2.

What is learnt from one split must not stand in another, so rows that tell of each other stay
together, as groups (union-find). Linked are rows with

- the same argument, without regard to case;
- each other's words, as inverse pairs: hot and cold, cold and hot;
- the same value of the data's optional column `lemma`, for spellings of one word: grey and gray;
- an answer in common; of a one-to-many task only the first one.

Where that leaves fewer than three groups, or one with more than half of the rows, no split could be
made: then only first answers link rows (countries on two continents tie all continents together),
and if that is still too much (two genders), answers do not. The stages after this one exclude a
vector's own answer anyway.

How groups are dealt out. The few large ones (more than a twentieth of the rows) go first, larger
ones before smaller, each to the split with the most room. All others stand on a line in the order
of a seeded hash of their own words, and the line is cut where the splits are full. So the ratio is
met as far as the groups allow, and a row that is added elsewhere moves little: it shifts the two
cuts by less than a row, so at most one small group changes at each, unless it joins groups together
or makes a group large. No model has a say: the split is the same for all.

Out-of-domain rows report what vectors do that were made without them: they, and what is linked to
them, are never train, and have a line of their own, dev to test 1:2.
"""

from collections import defaultdict

from vecsweep.tasks import Task, seeded

SHARES = {"train": 2, "dev": 1, "test": 2}
OUTSIDE = {"dev": 1, "test": 2}


def split_rows(task: Task, seed: int) -> list[str]:
    """The split of each row of a task."""
    outside = [is_outside(task, row) for row in task.rows]
    groups: list[list[int]] = []
    for answers in (1, 0) if task.kind == "one-to-many" else (None, 1, 0):
        groups = groups_of(task, answers)
        inside = [len(group) for group in groups if not any(outside[i] for i in group)]
        if len(inside) >= len(SHARES) and 2 * max(inside) <= sum(inside):
            break
    places = [seeded(task, row, "split", seed) for row in task.rows]
    found = [""] * len(task.rows)
    for shares in (SHARES, OUTSIDE):
        some = [g for g in groups if any(outside[i] for i in g) == (shares is OUTSIDE)]
        order = [min(places[i] for i in group) for group in some]
        for group, split in zip(some, deal([len(group) for group in some], order, shares)):
            for i in group:
                found[i] = split
    return found


def is_outside(task: Task, row: dict) -> bool:
    """Whether a row is in the task's out-of-domain group."""
    group = task.out_of_domain.get("group")
    return group is not None and row.get("group") == group


def groups_of(task: Task, answers: int | None) -> list[list[int]]:
    """Numbers of the rows that must stay together; of answers the first so many link, None: all."""
    parent = list(range(len(task.rows)))

    def root(i):
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    arguments = [row["argument"].casefold() for row in task.rows]
    accepted = [{answer.casefold() for answer in row["answers"]} for row in task.rows]
    same: dict[tuple, int] = {}  # what rows have in common -> the first that has it
    of_argument = defaultdict(list)
    for i, row in enumerate(task.rows):
        of_argument[arguments[i]].append(i)
        links = [("argument", arguments[i])]
        links += [("lemma", row["lemma"])] if row.get("lemma") else []
        links += [("answer", answer.casefold()) for answer in row["answers"][:answers]]
        for link in links:
            parent[root(i)] = root(same.setdefault(link, i))
    for i, argument in enumerate(arguments):
        for answer in accepted[i]:
            for j in of_argument.get(answer, []):
                if argument in accepted[j]:
                    parent[root(i)] = root(j)
    groups = defaultdict(list)
    for i in range(len(parent)):
        groups[root(i)].append(i)
    return list(groups.values())


def deal(sizes: list[int], order: list[int], shares: dict[str, int]) -> list[str]:
    """A split for each group, given its size and its place in a seeded order.

    Every split gets a group if there are as many groups as splits.
    """
    total, parts = sum(sizes), sum(shares.values())
    room = {name: total * share / parts for name, share in shares.items()}
    found = [""] * len(sizes)
    queue = sorted(range(len(sizes)), key=lambda i: order[i])
    large = [i for i in queue if sizes[i] > max(2, total / 20)]
    # By powers of two: which of two large groups goes first is the seed's, not a row's more.
    for i in sorted(large, key=lambda i: -sizes[i].bit_length()):
        found[i] = max(room, key=lambda name: room[name])
        room[found[i]] -= sizes[i]
    small = [i for i in queue if not found[i]]
    length = sum(sizes[i] for i in small)
    left = {name: max(0.0, some) for name, some in room.items()}
    ends, end = [], 0.0
    for name, some in left.items():
        if some:
            end += some / sum(left.values()) * length
            ends.append((end, name))
    start = 0
    for i in small:
        middle = start + sizes[i] / 2
        found[i] = next((name for end, name in ends if middle < end), ends[-1][1])
        start += sizes[i]
    for name in shares:
        if name not in found and len(sizes) >= len(shares):
            giver = max(shares, key=found.count)
            taken = [i for i in queue if found[i] == giver]
            found[min(taken, key=lambda i: sizes[i])] = name
    return found
