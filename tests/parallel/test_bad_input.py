"""Ranks that disagree: the same error on every rank, naming what differs and where."""

WORDS = {
    "bits": ["bits is 3 on ranks [0, 1], 4 on ranks [2]"],
    "rules": ["rules is", "on ranks [2]"],
    "shape": ["layer 0", "'first.weight', [64, 32]", "[48, 32]", "on ranks [2]"],
    "order": ["layer 0", "'second.weight'", "on ranks [2]"],
    "parameters": ["'second.weight'", "on ranks [2]", "broadcast_parameters"],
}


def test_every_rank_is_told(mpi_run):
    finished = mpi_run(3, "tests/parallel/bad_input.py", *WORDS)
    for what, words in WORDS.items():
        told = [x for x in finished.stdout.splitlines() if x.startswith(f"{what}: rank")]
        assert len(told) == 3, finished.stdout
        for line in told:
            for word in words:
                assert word in line
