import socket

import pytest

from sam2_jax.cli import main
from sam2_jax.commands.serve import _address


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--port", "99999"], "within 0..65535"),
        (["--token", "abc"], "at least 8"),
        (["--token", "with a space"], "letters, digits"),
        (["--sessions", "0"], "limit sessions is 0"),
        (["--max-seconds", "nan"], "limit seconds is nan"),
        (["--host", "203.0.113.7"], "choose another --host or --port"),
    ],
)
def test_errors_are_one_line(arguments, said, capsys):
    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_a_port_in_use_is_named(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    assert f"port {port}" in capsys.readouterr().err


def test_the_address_to_open():
    assert _address("127.0.0.1", 8000, None) == "http://127.0.0.1:8000/"
    assert _address("::1", 8000, None) == "http://[::1]:8000/"
    assert _address("0.0.0.0", 80, "secret") == f"http://{socket.gethostname()}:80/?token=secret"
