"""The compiled codec, ``horovod_qoda.native._codec``. Use it through ``horovod_qoda.coding``."""
