"""kserve's REST client, whose package reads the command line of whoever imports it."""

from __future__ import annotations

import importlib
import sys

_argv, sys.argv = sys.argv, sys.argv[:1]
try:
    _kserve = importlib.import_module("kserve")
finally:
    sys.argv = _argv

InferenceRESTClient = _kserve.InferenceRESTClient
InferInput = _kserve.InferInput
InferRequest = _kserve.InferRequest
RESTConfig = _kserve.RESTConfig
UnsupportedProtocol = importlib.import_module("kserve.errors").UnsupportedProtocol
