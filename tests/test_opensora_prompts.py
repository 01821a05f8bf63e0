import pytest

from foresight.models.opensora.prompts import clean_prompt, with_aesthetic_score


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("  A Red   Circle\nmoves\tLEFT ", "a red circle moves left"),
        ("see https://example.org/a?b=c and www.example.org/x now", "see and now"),
        ("salt &amp; pepper &amp;lt;b&amp;gt;bold&amp;lt;/b&amp;gt;", "salt & pepper bold"),
        ("<p>one</p><br/>two", "one two"),
        ("3 < 5 and 7 > 6", "3 < 5 and 7 > 6"),
        ("photo by @someone #123", "photo by"),
        ("a\u2014b \u201cquoted\u201d it\u2019s snake_case", 'a-b "quoted" it\'s snake case'),
        ("Größe 3.5, naïve", "größe 3.5, naïve"),
        ("", ""),
    ],
)
def test_cleaning(text, cleaned):
    assert clean_prompt(text) == cleaned
    assert clean_prompt(cleaned) == cleaned


def test_aesthetic_score_is_said_in_words():
    assert with_aesthetic_score("a cat", 6.5) == "a cat aesthetic score: 6.5."
    assert with_aesthetic_score("a cat", None) == "a cat"
