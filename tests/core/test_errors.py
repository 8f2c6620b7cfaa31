"What is told stays in its line."
import sys

from ctseg.core import errors


def test_a_line_that_is_said_cannot_steer_the_terminal(capsys):
    errors.say("wrote \x1b[2Jx\u202e\n", sys.stderr)
    assert capsys.readouterr().err == "wrote \\x1b[2Jx\\u202e\\n\n"
