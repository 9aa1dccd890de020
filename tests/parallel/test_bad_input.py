"""Ranks that disagree: the same error on every rank, naming what differs and where."""

WORDS = {
    "bits": ["bits is 3 on ranks [0, 1], 4 on ranks [2]"],
    "rules": ["rules is", "on ranks [2]"],
    "shape": ["layer 0", "'first.weight', [64, 32]", "[48, 32]", "on ranks [2]"],
    "order": ["layer 0", "'second.weight'", "on ranks [2]"],
}
WARNING = (
    "REPLICAS DIFFER AT THE FIRST STEP: parameters differ between ranks in layer 'second.weight'"
)


def test_every_rank_is_told(mpi_run):
    finished = mpi_run(3, "tests/parallel/bad_input.py", *WORDS, "parameters")
    for what, words in WORDS.items():
        told = [x for x in finished.stdout.splitlines() if x.startswith(f"{what}: rank")]
        assert len(told) == 3, finished.stdout
        for line in told:
            for word in words:
                assert word in line
    warned = [x for x in finished.stderr.splitlines() if WARNING in x]
    assert len(warned) == 1 and "on ranks [2]" in warned[0], finished.stderr
    assert "broadcast_parameters" in warned[0]
