"""The language of real sentences, and of what is in none."""

import pyarrow as pa

from hfbatch.guards.language import foreign, installed, known_languages

GERMAN = "Das Wetter war gestern in Berlin so schlecht, dass niemand das Haus verlassen wollte."
ENGLISH = "The weather in London was so bad yesterday that nobody wanted to leave the house."
FRENCH = "Le temps était si mauvais hier à Paris que personne ne voulait quitter la maison."
RUSSIAN = "Погода вчера в Москве была такой плохой, что никто не хотел выходить из дома."
CHINESE = "昨天北京的天气太糟糕了没有人想离开家。"
CODES = "A1B2-C3D4 E5F6-7890 2019-01-01 00:00:00"
TEXTS = pa.array([GERMAN, ENGLISH, FRENCH, RUSSIAN, CHINESE, None, ""], pa.large_string())


def test_a_text_in_another_language_is_told_with_its_code():
    assert installed()
    assert list(foreign(TEXTS, ["en", "de"], 0.8)) == [2, 3, 4]
    assert {row: told[:2] for row, told in foreign(TEXTS, ["en"], 0.8).items()} == {0: "de", 2: "fr", 3: "ru", 4: "zh"}
    assert foreign(TEXTS, ["fr", "en"], 0.8)[0] == "de, with probability 1.00"


def test_what_is_in_no_language_or_cannot_be_told_is_let_through():
    unsure = pa.array(["ok", "12345 67890", "https://x.org/a?b=1", "🙂🙂🙂", "Berlin", CODES], pa.large_string())
    assert foreign(unsure, ["en"], 0.8) == {}


def test_only_the_beginning_of_a_long_text_counts():
    assert foreign(pa.array([ENGLISH * 50 + RUSSIAN * 500], pa.large_string()), ["en"], 0.8) == {}


def test_it_knows_the_languages_that_people_name():
    assert {"en", "de", "fr", "es", "zh", "ja", "ar", "hi", "ru"} <= known_languages()
    assert not {"und", "zxx"} & known_languages()
