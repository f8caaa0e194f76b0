"""A failure to write becomes an error with the place, the reason and a hint."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from refcli.errors import RefcliError, TrainingError
from refcli.files import explain_write_errors

PLACE = Path("/out/weights")


def failing(failure: BaseException, /, **options) -> RefcliError:
    with pytest.raises(RefcliError) as caught, explain_write_errors("the weights", PLACE, **options):
        raise failure
    return caught.value


def test_the_reason_of_the_system_and_its_file_are_reported():
    error = failing(OSError(errno.ENOSPC, "No space left on device", "/out/weights/model.safetensors"))
    assert error.message == "the weights cannot be written: No space left on device"
    assert error.where == "/out/weights/model.safetensors"
    assert "make room" in error.hint and "--resume" not in error.hint


def test_without_a_file_the_given_place_is_reported():
    assert failing(OSError("odd\nsecond line")).message == "the weights cannot be written: odd"
    assert failing(OSError("odd")).where == str(PLACE)


def test_the_class_of_the_error_and_the_hint_about_resuming_are_chosen_by_the_caller():
    error = failing(RuntimeError("write failed"), error=TrainingError, also=(RuntimeError,), can_resume=True)
    assert isinstance(error, TrainingError)
    assert error.hint.endswith("continues with --resume")


def test_other_exceptions_and_success_pass_through():
    with pytest.raises(KeyError), explain_write_errors("the weights", PLACE):
        raise KeyError("x")
    with explain_write_errors("the weights", PLACE):
        pass
