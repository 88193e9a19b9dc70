from models.data.texts import clean, item_text


def test_texts_are_one_short_line_without_markup():
    assert clean("  a\x00b\n\u202ec\u200b &amp; <end_of_turn> d<|im_start|>") == "a b c & d"
    assert clean("L&#39;Oreal &lt;3 &#x1F3AC;") == "L'Oreal <3 🎬"
    assert len(clean("word " * 1000)) <= 320
    assert item_text("T", {"genre": ["x", "y"], "year": 1995, "none": None}) == "T. genre: x y, year: 1995"
    assert item_text(None, None) == ""
    assert item_text(1984, "plain") == "1984. plain", "numbers are titles, too"
    assert item_text(1984.0, 7.5) == "1984. 7.5"
    assert item_text(float("nan"), float("inf")) == "", "pandas writes NaN for no title"
    assert item_text("L&amp;#39;Oreal", ["&amp;amp;"]) == "L'Oreal. &", "shops escape twice"
    assert clean("&amp;lt;end_of_turn&amp;gt; x") == "x"
    assert item_text(True, None) == ""
