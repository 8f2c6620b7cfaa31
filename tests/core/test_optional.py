"Packages of extras are imported without a word to their makers."
import os
import sys

import pytest
from helpers.processes import elsewhere

from ctseg.core.optional import import_extra


def asked_for_the_network(module):
    asked = []
    sys.addaudithook(lambda event, _: asked.append(event) if event in ("socket.connect", "socket.getaddrinfo") else None)
    import_extra(module, module, "this test")
    return asked, os.environ["ORT_DISABLE_TELEMETRY"]


@pytest.mark.parametrize("module", ["openvino", "onnxruntime"])
def test_no_package_reports_its_use(module):
    pytest.importorskip(module)
    with elsewhere() as call: assert call(asked_for_the_network, module) == ([], "1")
