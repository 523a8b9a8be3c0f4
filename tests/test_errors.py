"""The message of an InputError is one line of bounded length, whatever stood in the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertgpt.errors import LONGEST, SHOWN, InputError, check_regular, excerpt


def test_what_a_terminal_would_obey_or_cannot_show_is_replaced():
    assert str(InputError("a.txt:\n no\0 \x1b[2Jkey 'é\ud800新'")) == "a.txt: no? ?[2Jkey 'é?新'"


def test_a_long_message_keeps_its_file_and_its_advice():
    message = str(InputError(f"a.json: no key {'x ' * 5000}; give one"))
    assert message.startswith("a.json: no key x")
    assert message.endswith("x ; give one")
    assert len(message) == LONGEST + 5


def test_a_long_word_keeps_its_ends():
    message = str(InputError(f"{'a' * 300}z.txt: no such file"))
    assert message == f"{'a' * 98}...{'a' * 92}z.txt: no such file"
    assert excerpt("b" * SHOWN) == "b" * SHOWN


def test_a_git_lfs_pointer_is_no_content(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    with pytest.raises(InputError, match=r"model.safetensors: is a git-lfs pointer, .* run git lfs pull in its folder"):
        check_regular(file)
    file.write_bytes(b"version https://git-lfs.github.com/")
    check_regular(file)


@given(st.text(st.characters(exclude_categories=[]), max_size=100))
def test_any_message_is_one_line_of_utf8(text):
    message = str(InputError(text))
    assert message.encode().decode().splitlines() in ([], [message])
