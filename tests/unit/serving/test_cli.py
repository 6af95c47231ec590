"""The command line of ``python -m serving``: a wrong option is reported in one line, before anything starts."""

from __future__ import annotations

import pytest

from serving.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ready-timeout-s", "0"], "'0'; allowed: seconds above 0"),
        (["--ready-timeout-s", "nan"], "'nan'; allowed: seconds above 0"),
        (["--ready-timeout-s", "soon"], "'soon'; allowed: seconds above 0"),
        (["--log-verbose", "-1"], "'-1'; allowed: 0 or more"),
        (["--log-verbose", "x"], "'x'; allowed: 0 or more"),
        (["--precisions", "int8,fp8"], "'fp8'; allowed: fp32, fp16, int8"),
        (["--profile", "gpu"], "invalid choice: 'gpu'"),
        (["--resample", "cubic"], "invalid choice: 'cubic' (choose from 'area', 'bilinear')"),
    ],
)
def test_a_wrong_option_is_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["run", *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
