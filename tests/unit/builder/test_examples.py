"""Every command's help ends with examples, and every example is a command line that the builder reads."""

from __future__ import annotations

import shlex

import pytest

from builder.__main__ import _parser, main
from builder.examples import EXAMPLES


@pytest.mark.parametrize("command", EXAMPLES)
def test_examples_are_shown_and_parsed(command, capsys):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for example in EXAMPLES[command]:
        assert f"python -m builder {example}" in shown
        assert _parser().parse_args(shlex.split(example)).run


def test_help_of_builds_names_layouts_and_gates(capsys):
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    shown = capsys.readouterr().out
    for words in ("YOLOv5-seg and YOLOv7-seg", "end-to-end  YOLO26-seg", "F1 0.99, mask IoU 0.98", "--workspace-mib"):
        assert words in shown


@pytest.mark.parametrize(("text", "size"), [("640", (640, 640)), ("384x640", (384, 640))])
def test_one_number_is_a_square(text, size):
    assert _parser().parse_args(["build", "--input-size", text]).input_size == size


@pytest.mark.parametrize("text", ["640x", "x640", "640x640x3", "-640", "six", "6400000"])
def test_other_sizes_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        _parser().parse_args(["build", f"--input-size={text}"])
    assert "384x640, or one number for both" in capsys.readouterr().err
