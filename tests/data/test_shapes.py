"""Drawn images: the same on every machine, and true to what is said of them."""

from __future__ import annotations

import torch

from dfrot.data import shapes


def test_a_seed_is_an_image() -> None:
    for seed in (0, 7, shapes.HELD_OUT):
        one, again = shapes.sample(seed), shapes.sample(seed)
        assert torch.equal(one.picture, again.picture)
        assert (one.question, one.answer, one.things) == (again.question, again.answer, again.things)
    assert not torch.equal(shapes.sample(0).picture, shapes.sample(1).picture)


def test_things_stand_where_the_answer_says() -> None:
    said, asked = set(), set()
    for seed in range(300):
        one = shapes.sample(seed)
        assert one.picture.shape == (shapes.SIZE, shapes.SIZE, 3)
        for side, columns in (("left", slice(0, 16)), ("right", slice(16, 32))):
            there = {(colour, thing) for place, colour, thing in one.things if place == side}
            pixels = one.picture[:, columns].reshape(-1, 3)
            inks = {
                colour
                for colour, ink in shapes.COLOURS.items()
                if int((pixels == torch.tensor(ink, dtype=torch.uint8)).all(1).sum()) >= 8
            }
            assert {colour for colour, _ in there} <= inks
            assert inks <= {colour for _, colour, _ in one.things}
        if one.question.startswith("How many"):
            assert one.answer.startswith(("There is one:", "There are two:")[len(one.things) - 1])
        said |= {thing for *_, thing in one.things if thing in one.answer}
        asked.add(one.question)
    assert said == {*shapes.SHAPES, *shapes.WORDS}
    assert len(asked) == 4


def test_letters_cover_the_words() -> None:
    """Every word is drawn with as many dots as its letters have."""
    for word in shapes.WORDS:
        assert int(shapes._ink(word, 16, 16, 5).sum()) == sum(shapes._LETTERS[letter].count("1") for letter in word)
        assert all(len(shapes._LETTERS[letter]) == 15 for letter in word)
