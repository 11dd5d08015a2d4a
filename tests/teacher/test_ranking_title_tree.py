"""The prefix tree of all titles."""

from __future__ import annotations

import pytest
import torch

from src.core.errors import DataError
from src.teacher.title_lm.decoding.subtrees import read_order
from src.teacher.title_lm.decoding.title_tree import TitleTree
from tests.teacher.exact import leaves_of

END = 9
# 0: a b; 1: c; 2: a b again; 3: a; 4: a d; 5: a b e
TITLES = [[1, 2], [3], [1, 2], [1], [1, 4], [1, 2, 5]]


@pytest.fixture
def tree() -> TitleTree:
    return TitleTree.of(TITLES, END)


def path_of(tree: TitleTree, leaf: int) -> list[int]:
    """The tokens from the root to a leaf."""
    tokens = []
    while leaf:
        tokens.append(int(tree.token[leaf]))
        leaf = int(tree.parent[leaf])
    return tokens[::-1]


def test_by_hand(tree: TitleTree) -> None:
    # root; a, c; (a) end, b, d; (c) end; (b) end, e; (d) end; (e) end
    assert tree.token.tolist() == [-1, 1, 3, END, 2, 4, END, END, 5, END, END]
    assert tree.parent.tolist() == [-1, 0, 0, 1, 1, 1, 2, 4, 4, 5, 8]
    assert tree.children.tolist() == [1, 3, 6, 7, 7, 9, 10, 10, 10, 11, 11, 11]
    assert tree.levels == (1, 2, 4, 3, 1)
    assert (tree.num_items, tree.num_nodes, tree.depth) == (6, 11, 4)


def test_every_item_is_behind_its_own_title(tree: TitleTree) -> None:
    leaves = leaves_of(tree)
    place, items = tree.items_of(leaves)
    found = {item: path_of(tree, int(leaves[at])) for at, item in zip(place.tolist(), items.tolist(), strict=True)}
    assert found == {item: [*title, END] for item, title in enumerate(TITLES)}


def test_leaves_below_each_node(tree: TitleTree) -> None:
    assert tree.below.tolist() == [5, 4, 1, 1, 2, 1, 1, 1, 1, 1, 1]


def test_equal_titles_share_a_leaf_and_are_reported(tree: TitleTree) -> None:
    assert tree.duplicates() == [(0, 2)]
    # a; c; a b; a d; a b e
    leaves = torch.tensor([3, 6, 7, 9, 10])
    assert tree.item_count(leaves).tolist() == [1, 1, 2, 1, 1]
    assert tree.first_item(leaves).tolist() == [3, 1, 0, 4, 5]
    assert TitleTree.of([[1], [2]], END).duplicates() == []


def test_only_leaves_hold_items(tree: TitleTree) -> None:
    assert leaves_of(tree).tolist() == [3, 6, 7, 9, 10]
    assert all(tree.token[leaf] == END for leaf in leaves_of(tree))


def test_children_of_many_nodes_at_once(tree: TitleTree) -> None:
    parent, node = tree.children_of(torch.tensor([4, 3, 0, 4]))
    assert parent.tolist() == [0, 0, 2, 2, 3, 3]
    assert node.tolist() == [7, 8, 1, 2, 7, 8]


def test_a_large_catalogue_keeps_every_title() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(1, 6, (300,), generator=generator).tolist()
    titles = [torch.randint(0, 4, (size,), generator=generator).tolist() for size in sizes]
    tree = TitleTree.of(titles, END)
    leaves = leaves_of(tree)
    place, items = tree.items_of(leaves)
    for at, item in zip(place.tolist(), items.tolist(), strict=True):
        assert path_of(tree, int(leaves[at])) == [*titles[item], END]
    assert sorted(items.tolist()) == list(range(300))
    assert sum(map(len, tree.duplicates())) == 300 - sum(titles.count(title) == 1 for title in titles)
    assert sum(tree.levels) == tree.num_nodes
    assert (tree.parent[1:].diff() >= 0).all()


def test_what_is_below_some_beams(tree: TitleTree) -> None:
    beams = torch.tensor([[1, 2], [4, 5], [2, 0]])
    below = read_order(tree, beams, torch.tensor([[True, True], [True, True], [True, False]]))
    # a and c, then b and d below a, then e below b; b and d, then e below b; c
    assert below.node.tolist() == [[1, 2, 4, 5, 8], [4, 5, 8, 0, 0], [2, 0, 0, 0, 0]]
    assert below.used.sum(dim=1).tolist() == [5, 3, 1]
    assert below.origin.tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0] * 5]
    assert below.depth.tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 0, 0], [0] * 5]
    chains = [[{0}, {1}, {2, 0}, {3, 0}, {4, 2, 0}], [{0}, {1}, {2, 0}, {3}, {4}], [{0}, {1}, {2}, {3}, {4}]]
    assert [[set(node.nonzero().flatten().tolist()) for node in row] for row in below.above] == chains


@pytest.mark.parametrize(
    ("titles", "said"),
    [([], "at least one title"), ([[1], [], [2]], "have no token"), ([[1], [2, END, 3]], "stands inside")],
)
def test_titles_that_make_no_tree(titles: list[list[int]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TitleTree.of(titles, END)
