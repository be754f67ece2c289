# SPDX-License-Identifier: Apache-2.0
"""Who runs on a case: ours and the peers."""

from . import ours
from .cases import Case
from .peers import Peer, chain_peers
from .tree_peers import tree_peers

OURS = tuple(peer.name for peer in ours.entries())


def contenders(case: Case, with_compiled: bool = True) -> tuple[list[Peer], dict[str, str]]:
    """Contenders that can run here, and why the others cannot."""
    peers, missing = (tree_peers(), {}) if case.branching else chain_peers(case.filtered, with_compiled)
    return [*ours.entries(), *peers], missing
