"""What measured parts of a step would cost over other links."""

from __future__ import annotations


def link_bytes(topology: str, wire_bytes: float, ranks: int) -> float:
    """Bytes that one rank receives over its link in one exchange (and sends: all are symmetric).

    `wire_bytes` is what a rank hands to Horovod. With K ranks a ring moves

    - ``raw``, an all-reduce of W bytes: 2 (K−1)/K · W;
    - ``allgather`` of W bytes from every rank: (K−1) · W;
    - ``scatter_reduce``, an all-to-all of A bytes, of which 1/K stay, then an all-gather of this
      rank's chunk of B bytes: (K−1)/K · A + (K−1) · B. Where both stages code the same number of
      bits, A = K·B and W = A + B, which makes it 2 (K−1)/(K+1) · W. The mean takes more bits than
      the gradients where ranks agree; `Transport.link_bytes` counts what is sent.

    Raises:
        ValueError: unknown topology, or ranks < 1.
    """
    if ranks < 1:
        raise ValueError(f"ranks must be at least 1, not {ranks}")
    factors = {
        "raw": 2 * (ranks - 1) / ranks,
        "allgather": ranks - 1,
        "scatter_reduce": 2 * (ranks - 1) / (ranks + 1),
    }
    if topology not in factors:
        raise ValueError(f"topology must be one of {', '.join(factors)}, not {topology!r}")
    return factors[topology] * wire_bytes


def predict(
    topology: str,
    ranks: int,
    wire_bytes: float,
    bits_per_second: float,
    *,
    compute_s: float,
    encode_s: float = 0.0,
    decode_s: float = 0.0,
) -> float:
    """Seconds a step would take on hosts joined by links of `bits_per_second` each way.

        compute + encode + 8 · link_bytes / bits_per_second + decode

    The parts are the measured ones. Nothing is hidden behind anything, latency and protocol
    overhead are left out, a host has one rank: an upper bound on the parts and a lower bound on the
    wire, the same for compressed and uncompressed exchanges (encode = decode = 0), so that the two
    can be compared. Ranks that share cores inflate every part.

    Raises:
        ValueError: a rate that is not positive, an unknown topology, ranks < 1.
    """
    if not bits_per_second > 0:
        raise ValueError(f"bits_per_second must be positive, not {bits_per_second}")
    wire_s = 8 * link_bytes(topology, wire_bytes, ranks) / bits_per_second
    return compute_s + encode_s + wire_s + decode_s
