"""What the tests of the command share."""

from fastopt.cli import main


def must_fail(capsys, *argv):
    """Run ``main(argv)``, which must return 2 and say why in one line; return that line."""
    code = main([*map(str, argv)])
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    return err
