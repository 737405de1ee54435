"""The function library that runs on the presence server: the files of lua/ as one text."""

import hashlib
from importlib.resources import files

#: In this order, because later files use earlier ones.
_FILES = ("seqs", "hash", "batches", "sessions", "bounds", "tally", "presence")
_TEXT = "\n".join(files("worker.store").joinpath("lua", f"{name}.lua").read_text("utf-8") for name in _FILES)

#: The name of the library and of its first function. It has the digest of the text, so that workers of two releases can
#: share a server during an upgrade.
NAME = "presence_" + hashlib.sha256(_TEXT.encode()).hexdigest()[:12]
#: For FUNCTION LOAD.
SOURCE = f"#!lua name={NAME}\n" + _TEXT.replace("'FUNCTION", f"'{NAME}")
