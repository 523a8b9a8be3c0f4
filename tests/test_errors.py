"""The message of an InputError is one line of bounded length, whatever stood in the file."""

from hypothesis import given
from hypothesis import strategies as st

from bertgpt.errors import LONGEST, InputError


def test_what_a_terminal_would_obey_or_cannot_show_is_replaced():
    assert str(InputError("a.txt:\n no\0 \x1b[2Jkey 'é\ud800新'")) == "a.txt: no? ?[2Jkey 'é?新'"


def test_a_long_message_keeps_its_file_and_its_advice():
    message = str(InputError(f"a.json: no key {'x ' * 5000}; give one"))
    assert message.startswith("a.json: no key x")
    assert message.endswith("x ; give one")
    assert len(message) == LONGEST + 5


@given(st.text(st.characters(exclude_categories=[]), max_size=100))
def test_any_message_is_one_line_of_utf8(text):
    message = str(InputError(text))
    assert message.encode().decode().splitlines() in ([], [message])
