"Packages of extras are imported without a word to their makers."
import os
import sys

import pytest
from helpers.processes import elsewhere

from ctseg.core.optional import import_extra


def what_reports(module):
    import_extra(module, module, "this test")
    senders = [name for name in sys.modules if name.startswith("openvino_telemetry.")]
    return senders, os.environ["ORT_DISABLE_TELEMETRY"]


@pytest.mark.parametrize("module", ["openvino", "onnxruntime"])
def test_no_package_reports_its_use(module):
    pytest.importorskip(module)
    with elsewhere() as call: assert call(what_reports, module) == ([], "1")
