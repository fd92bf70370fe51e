"""Few-step students of video and image diffusion models by Trajectory Distribution Matching (arXiv
2503.06674).
"""

import logging
from functools import partial

_SAID_ON_IMPORT = {
    "torchao": "Failed to load ",  # kernels for GPUs that are not here
    "torch.utils._pytree": " is an Enum subclass ",
    "diffusers.quantizers.torchao.torchao_quantizer": (
        "Unable to import `torchao` Tensor objects"
    ),  # of checkpoints in torchao's formats
    "transformers.utils.import_utils": (
        " requires torchvision "
    ),  # image processors, of which no text encoder has use
}
"""What libraries say of parts of theirs that are not used here, by logger: ten lines before the
first of a program's own.
"""


def _says_nothing_of(words: str, record: logging.LogRecord) -> bool:
    return words not in str(record.msg)


for _logger, _words in _SAID_ON_IMPORT.items():
    logging.getLogger(_logger).addFilter(partial(_says_nothing_of, _words))
