"""Words to tokens, scenes to captions, captions to meanings."""

import pytest

from deployments.embedded import captions
from deployments.embedded.architecture import build_tokenizer
from deployments.embedded.checkpoints import randomness
from deployments.embedded.meaning import CHOICES, MEANING_WIDTH, choices_of, meaning_of, read
from deployments.embedded.scenes import Scene, Thing, sample_scene
from deployments.embedded.train_text import tokenise
from deployments.embedded.vocabulary import MAX_TOKENS, UNKNOWN, all_tokens


def test_known_words_stay_whole_and_others_become_the_unknown_token() -> None:
    tokens = build_tokenizer().tokenize("A cute anime girl, with Blue-hair!")
    assert tokens == ["a", UNKNOWN, UNKNOWN, UNKNOWN, ",", "with", "blue", UNKNOWN]


def test_a_prompt_of_any_length_becomes_77_tokens() -> None:
    ids = tokenise(build_tokenizer(), ["red", "blue " * 300])
    assert ids.shape == (2, MAX_TOKENS)


def test_no_word_has_two_ids() -> None:
    assert len(set(all_tokens())) == len(all_tokens())


@pytest.mark.parametrize("seed", range(5))
def test_complete_captions_use_known_words_only(seed: int) -> None:
    random, _ = randomness(seed)
    tokenizer = build_tokenizer()
    for _ in range(60):
        text = captions.caption(sample_scene(random), random).text
        assert UNKNOWN not in tokenizer.tokenize(text), text


def test_complete_captions_name_every_colour_and_shape() -> None:
    random, _ = randomness(1)
    for _ in range(200):
        scene = sample_scene(random)
        words = captions.caption(scene, random).text.replace(",", "").split()
        asked = [scene.background, *(word for thing in scene.things for word in (thing.colour, thing.shape))]
        assert set(asked) <= set(words), words


def test_a_meaning_can_be_read_back() -> None:
    random, _ = randomness(2)
    for _ in range(100):
        scene, said = captions.sample(random)
        assert read(meaning_of(scene, said)) == choices_of(scene, said)


def test_every_part_of_a_meaning_is_one_choice() -> None:
    scene = Scene("blue", (Thing("star", "red"),))
    vector = meaning_of(scene, captions.Caption("a red star on blue"))
    assert vector.shape == (MEANING_WIDTH,)
    assert int((vector > 0).sum()) == len(CHOICES)
