"""The function library that runs on the presence server: the files of lua/ as one text."""

import hashlib
from importlib.resources import files

#: In the order in which they use one another.
_FILES = ("seqs", "hash", "batches", "sessions", "bounds", "tally", "presence")
_TEXT = "\n".join(files("worker.store").joinpath("lua", f"{name}.lua").read_text("utf-8") for name in _FILES)

#: Of the library and its first function. The text's own digest is in it, so that workers of two releases can use one
#: server during an upgrade.
NAME = "presence_" + hashlib.sha256(_TEXT.encode()).hexdigest()[:12]
#: For FUNCTION LOAD.
SOURCE = f"#!lua name={NAME}\n" + _TEXT.replace("'FUNCTION", f"'{NAME}")
