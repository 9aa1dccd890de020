"""``python -m horovod_qoda.cli``: the same where console scripts are not on PATH."""

from horovod_qoda.cli import main

raise SystemExit(main())
