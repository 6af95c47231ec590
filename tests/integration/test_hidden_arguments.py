"""A secret among the arguments of a process reaches it, and nobody else."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading

import pytest

from serving import hidden_arguments
from serving.hidden_arguments import CannotHide, start_hidden
from tests.local_user import looking_for

# What it was given, how often it was given that, and how many variables hold what was hidden: its own, and a child's.
PROGRAM = """
import os, subprocess, sys
mine = [value for name, value in os.environ.items() if sys.argv[-1] in value]
child = subprocess.run(["env"], capture_output=True, text=True).stdout
print(sys.argv[1:], mine, child.count(sys.argv[-1]))
"""


def start(*arguments, secret, **options):
    return start_hidden(arguments, secret, os.environ, lambda: None, stdout=subprocess.PIPE, text=True, **options)


def test_another_user_never_sees_what_the_program_gets():
    shown, secret = secrets.token_hex(16), secrets.token_hex(16)
    with looking_for(shown) as seen:
        subprocess.run(["sh", "-c", "sleep 1; :", "sh", shown], check=True)
    assert {file for _, file in seen} == {"cmdline"}  # it would be seen
    with looking_for(secret) as seen:
        for _ in range(40):
            with start("echo", f"--option=a,b:{secret}", "and", secret, secret=secret) as process:
                assert process.stdout.read() == f"--option=a,b:{secret} and {secret}\n"
            assert process.returncode == 0
            assert secret not in str(process.args)
    assert seen == []


def test_neither_the_programs_children_nor_its_own_environment_get_it():
    with start(sys.executable, "-c", PROGRAM, "a", "a", "key=value123", secret="value123") as process:
        assert process.stdout.read() == "['a', 'a', 'key=value123'] [] 0\n"


def test_a_script_gets_it_too(tmp_path):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh -e\necho $1 $2\n")
    script.chmod(0o755)
    with start(str(script), "a", "value123", secret="value123") as process:
        assert process.stdout.read() == "a value123\n"


def test_it_works_from_several_threads_at_once():
    answers = []

    def run():
        for _ in range(10):
            with start("echo", "value123", secret="value123") as process:
                answers.append(process.stdout.read())

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["value123\n"] * 40


# With gRPC's own handlers of forks, about one start of fifty ended in an abort, or all of it stood still.
BESIDE_GRPC = """
import os, subprocess, threading, time
from concurrent.futures import ThreadPoolExecutor
from serving.hidden_arguments import start_hidden
import grpc

server = grpc.server(ThreadPoolExecutor(2))
echo = grpc.unary_unary_rpc_method_handler(lambda request, _: request)
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", {"echo": echo})])
url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
server.start()

def call():
    with grpc.insecure_channel(url) as channel:
        while channel.unary_unary("/echo/echo")(b"one") == b"one":
            time.sleep(0.002)

for _ in range(2):
    threading.Thread(target=call, daemon=True).start()
for _ in range(150):
    with start_hidden(["echo", "value123"], "value123", os.environ, lambda: None, stdout=subprocess.PIPE) as process:
        assert process.stdout.read() == b"value123\\n"
print("all started", flush=True)
os._exit(0)
"""


def test_it_works_while_grpc_is_in_use():
    command = [sys.executable, "-c", BESIDE_GRPC]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "all started\n"), done.stderr


def test_what_the_kernel_forbids_is_said_and_the_program_does_not_run(tmp_path, monkeypatch):
    def forbid():
        # A process has one tracer; a debugger that follows children, or Yama, has the same effect.
        hidden_arguments._LIBC.ptrace(hidden_arguments._PTRACE_TRACEME, 0, None, None)

    made = tmp_path / "made"
    with pytest.raises(CannotHide, match="ptrace"):
        start_hidden(["touch", str(made), "value123"], "value123", os.environ, forbid)
    monkeypatch.setattr(hidden_arguments, "_START_STACK", 29)
    with pytest.raises(CannotHide, match=r"memory|stack"):
        start("touch", str(made), "value123", secret="value123")
    assert not made.exists()


def test_a_program_that_is_missing_is_an_os_error():
    with pytest.raises(FileNotFoundError):
        start("/no/such/program", "value123", secret="value123")
