"""Language models: loading, attention over cached states, item memory, adapters, encoding of texts, text generation.

The prompts and instructions of each system are in `models/systems`.

May import: compute, data.
"""

import transformers.utils
import transformers.utils.import_utils

# The sentence encoder's package brings scikit-learn and SciPy along. Transformers imports both wherever they are
# installed, for functions never used here: 78 MB of memory in every process and a second of every start.
for _there in ("is_sklearn_available", "is_scipy_available"):
    for _module in (transformers.utils, transformers.utils.import_utils):
        setattr(_module, _there, lambda: False)
