"""Text from elsewhere on a terminal."""

import io

import cv2
import numpy as np
import pytest
from rich.console import Console

import client.__main__
import load.__main__
from base.progress import Steps
from pipeline.command_line import Parser, markup, printable, say
from repository.errors import RepositoryError

HOSTILE = "a\x1b[2J\x07\x9b31m\x85\u202eb\r\n[red]c\t.png"
SHOWN = r"a\x1b[2J\x07\x9b31m\x85\u202eb\r\n[red]c\t.png"


def test_control_characters_are_escaped_and_nothing_else():
    assert printable(HOSTILE) == SHOWN
    assert printable("größe 写真 \U0001f600 \udcff [x]") == "größe 写真 \U0001f600 \udcff [x]"
    assert printable("one\n\ttwo\r\x1b", layout=True) == "one\n\ttwo\\r\\x1b"


def commands(text):
    """Characters that a terminal obeys, line ends and tabs left out."""
    return [one for one in text if not one.isprintable() and one not in "\n\t"]


def test_say(capsys):
    say(f"{HOSTILE}: no such file")
    assert commands(capsys.readouterr().out) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_steps(terminal):
    """Bars, lines, notes and warnings hold no command but rich's own."""
    stream = io.StringIO()
    steps = Steps(Console(file=stream, force_terminal=terminal, color_system=None, width=200))
    with steps.step(HOSTILE, HOSTILE, total=1) as advance:
        advance()
    steps.note(HOSTILE)
    steps.warn(HOSTILE)
    text = stream.getvalue()
    assert r"a\x1b[2J" in text
    assert not any(command in text for command in ("\x1b[2J\x07", "\x9b", "\x85", "\u202e"))


def test_markup_keeps_brackets():
    stream = io.StringIO()
    Console(file=stream, width=200).print(markup(HOSTILE), highlight=False)
    assert stream.getvalue() == SHOWN + "\n"


def test_the_parsers_own_messages(capsys):
    with pytest.raises(SystemExit):
        Parser(prog="x").parse_args([HOSTILE])
    assert commands(capsys.readouterr().err) == []


def test_the_client_prints_hostile_file_names(tmp_path, capsys):
    name = HOSTILE.replace("\x85", "")
    assert client.__main__.main([str(tmp_path / name)]) == 2
    (tmp_path / name).write_bytes(cv2.imencode(".png", np.zeros((4, 4), np.uint8))[1].tobytes())
    assert client.__main__.main([str(tmp_path / name), "--url", "127.0.0.1:9", "--retries", "0"]) == 2
    printed = capsys.readouterr()
    assert commands(printed.out + printed.err) == []


def test_commands_print_hostile_errors(monkeypatch, capsys):
    def fail(options):
        raise RepositoryError(HOSTILE)

    monkeypatch.setattr("load.compare_command.run", fail)
    assert load.__main__.main(["compare"]) == 1
    printed = capsys.readouterr()
    assert SHOWN[:20] in printed.err
    assert commands(printed.out + printed.err) == []
