"""Functions that a user names: the messages of both that ask for one, an option and a key."""

import pytest

from penspin_style.env.user_function import load_function
from penspin_style.system.named_function import import_function
from real.drivers.named_function import named_function


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with modules of a user."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lamp_of_mine.py").write_text("def switch(on):\n    return on\n\nNUMBER = 3\n")
    (tmp_path / "broken_of_mine.py").write_text("1 / 0\n")
    (tmp_path / "needy_of_mine.py").write_text("import nothing_of_that_name\n")


def test_a_function_is_found_by_its_module_and_name(here):
    found = import_function("lamp_of_mine:switch", "key", "key=lamp_of_mine:switch")
    assert found(7) == 7
    assert named_function("lamp_of_mine:switch", "--light") is found
    assert load_function("task.light", "lamp_of_mine:switch") is found


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lamp_of_mine", "{key} must be module:function, got 'lamp_of_mine'"),
        (":switch", "{key} must be module:function, got ':switch'"),
        ("lamp of mine:switch", "{key} must be module:function, got 'lamp of mine:switch'"),
        ("no_lamp:on", "{said}: there is no module no_lamp, neither installed nor in the current"),
        ("lamp_of_mine:of", "{said}: lamp_of_mine has no function 'of'"),
        ("lamp_of_mine:NUMBER", "{said}: lamp_of_mine has no function 'NUMBER'"),
        ("broken_of_mine:on", "{said} cannot be imported: ZeroDivisionError: division by zero"),
        ("needy_of_mine:on", "{said} cannot be imported: No module named 'nothing_of_that_name'"),
    ],
)
def test_what_is_wrong_is_said_as_it_was_typed(here, name, message):
    for ask, key, said in (
        (lambda: named_function(name, "--light"), "--light", f"--light {name}"),
        (lambda: load_function("task.light", name), "task.light", f"task.light={name}"),
    ):
        with pytest.raises(ValueError) as caught:
            ask()
        assert str(caught.value).startswith(message.format(key=key, said=said))
