"""The page of a run that has every part."""

import pytest
from run_folder import PARTS

from tdmvid.report.page import write_report


@pytest.fixture
def page(tmp_path):
    for part in PARTS.values():
        part(tmp_path)
    return write_report(tmp_path).read_text()
