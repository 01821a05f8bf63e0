"""Published caches by other people, run by their own code and measured like every policy."""

from foresight.peers.attention import FasterCachePolicy, PyramidPolicy
from foresight.peers.base import NotApplicableError, PeerPolicy
from foresight.peers.dbcache import DBCachePolicy
from foresight.peers.first_block import FirstBlockPolicy
from foresight.peers.fitness import misfits
from foresight.peers.magcache import MagCachePolicy
from foresight.peers.taylorseer import TaylorSeerPolicy
from foresight.peers.teacache import TeaCachePolicy

__all__ = ["PEERS", "NotApplicableError", "PeerPolicy", "misfits"]

PEERS: dict[str, type[PeerPolicy]] = {
    "pab": PyramidPolicy,
    "fbcache": FirstBlockPolicy,
    "magcache": MagCachePolicy,
    "taylorseer": TaylorSeerPolicy,
    "fastercache": FasterCachePolicy,
    "cache-dit": DBCachePolicy,
    "teacache": TeaCachePolicy,
}
