import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before any test imports it

# Whatever proxy this machine uses, the tests' own calls of their servers go past it.
os.environ["no_proxy"] = ",".join(filter(None, ["127.0.0.1,localhost", os.environ.get("no_proxy")]))
