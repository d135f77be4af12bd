"""A run that began in one framework goes on in the other, through a checkpoint, as if unbroken."""

from __future__ import annotations

from pathlib import Path

import pytest
from decoders import FRAMEWORKS, trained
from programs import assert_bitwise_equal

from trainer_core import UserError

pytest.importorskip("trainer_nnx")
pytest.importorskip("trainer_linen")
pytest.importorskip("trainer_checkpoint")

BEGUN, WHOLE = 3, 6
SAVING = {"use": "orbax", "every": BEGUN}


@pytest.mark.parametrize("begun_in", FRAMEWORKS)
@pytest.mark.parametrize("scan", [True, False])
def test_a_run_goes_on_in_the_other_framework_bit_for_bit(
    begun_in: str, scan: bool, tmp_path: Path, quick_compiles: None
) -> None:
    goes_on_in = next(each for each in FRAMEWORKS if each != begun_in)
    model = {"scan": scan}
    unbroken = trained(tmp_path / "unbroken", begun_in, WHOLE, model=model)

    trained(tmp_path / "run", begun_in, BEGUN, model=model, checkpoint=SAVING)
    result = trained(
        tmp_path / "run", goes_on_in, WHOLE, accept_changes=True, model=model, checkpoint=SAVING
    )

    assert_bitwise_equal(result.state, unbroken.state)


def test_the_change_is_not_made_unasked(tmp_path: Path, quick_compiles: None) -> None:
    trained(tmp_path / "run", "nnx", BEGUN, checkpoint=SAVING)
    with pytest.raises(UserError, match=r'model.use: "nnx" -> "linen"\n.*--accept-changes'):
        trained(tmp_path / "run", "linen", WHOLE, checkpoint=SAVING)
