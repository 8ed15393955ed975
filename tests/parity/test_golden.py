"""Every key of every golden file, within the tolerances of docs/parity.md."""

import pytest

from tests.parity.golden import FILES, Comparison


@pytest.mark.parametrize("stem", FILES)
def test_equals_the_original(stem):
    comparison = Comparison(stem)
    rows = list(comparison.rows())
    wrong = [row for row in rows if not row.error <= row.limit]
    assert not wrong, "\n".join(map(str, wrong))
    assert set(comparison.golden.files) - {"click", "box"} == {row.key for row in rows}
