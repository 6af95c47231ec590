import os

import base  # noqa: F401 - sets variables that ONNX Runtime and gRPC read when they are imported

# Whatever proxy this machine uses, the tests' own calls of their servers go past it.
os.environ["no_proxy"] = ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("no_proxy")]))
