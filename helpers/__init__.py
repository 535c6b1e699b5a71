"""What the notebooks call: rooms for the five stages, on one ground floor."""

import logging
import os

from helpers.redact import install

# transformers warns at import of image processors that want torchvision, which nothing here uses
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
# datasets reports each loading of a folder, even a local one, to a counter on the network
os.environ.setdefault("HF_UPDATE_DOWNLOAD_COUNTS", "0")
# both warn at import of what does not run here; device.py tells of what was to be used
for library in ("bitsandbytes", "xformers"):
    logging.getLogger(library).setLevel(logging.ERROR)
install()
