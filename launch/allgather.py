"""What each rank of set-up's last check runs: one ragged all-gather of bytes through Horovod.

Prints one JSON line: this rank, how many ranks it sees, and what it gathered.
"""

import json
import sys

import horovod.torch as hvd
import torch

hvd.init()
mine = torch.full((hvd.rank() + 1,), hvd.rank() + 1, dtype=torch.uint8)
gathered = hvd.allgather(mine, name="setup").tolist()
# One write, newline included: lines of ranks must not run into each other.
sys.stdout.write(json.dumps({"rank": hvd.rank(), "size": hvd.size(), "gathered": gathered}) + "\n")
sys.stdout.flush()
hvd.shutdown()
