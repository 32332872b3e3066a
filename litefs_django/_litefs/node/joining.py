"""Does this node fit into the cluster that runs? Asked of the other nodes before LiteFS is started.

LiteFS itself looks at the cluster ID alone, and tries again for ever when it is another one.
"""

from __future__ import annotations

from pathlib import Path

from litefs_django._litefs.errors import SupervisorError
from litefs_django._litefs.ltx import LtxFiles
from litefs_django._litefs.reach import reach
from litefs_django._litefs.settings import LiteFSSettings
from litefs_django._litefs.survey import NodeReport, survey

_TIMEOUT = 1.0  # seconds for all answers, and as many for a primary's second one; who is silent is no obstacle


def check_joining(settings: LiteFSSettings) -> None:
    """Raises SupervisorError when starting this node would make a second primary, or lose what others have."""
    this = settings.cluster.this
    others = [node.name for node in settings.cluster.others]
    answers = [report for report in survey(reach(settings), others, _TIMEOUT) if report.info is not None]
    _check_cluster_id(settings.data_path, answers)
    if settings.leader_election == "static":
        _check_primary(settings.cluster.primary, answers)
        if settings.cluster.primary == this.name:
            _check_content(settings.data_path, answers)


def _check_cluster_id(data_path: Path, answers: list[NodeReport]) -> None:
    try:
        own = (data_path / "clusterid").read_text().strip()
    except FileNotFoundError:
        return
    for report in answers:
        if report.info and report.info.cluster_id not in (None, own):
            raise SupervisorError(
                f'LITEFS["DATA_PATH"]: {str(data_path)!r} is of the cluster {own}, and {report.name} of '
                f'{report.info.cluster_id}. Is one of the two in LITEFS["NODES"] by mistake? If this node is to join '
                f"{report.name}'s cluster, move {data_path} away: it gets the databases from the primary."
            )


def _check_primary(primary: str | None, answers: list[NodeReport]) -> None:
    for report in answers:
        if report.is_primary and report.name != primary:
            raise SupervisorError(
                f'LITEFS["PRIMARY"] is {primary!r} here, and {report.name!r} is the primary of the cluster that runs: '
                "of two primaries each drops what the other has written. Stop litefs_run on all nodes before you "
                f"change it; to join as they are, set it to {report.name!r}."
            )


def _check_content(data_path: Path, answers: list[NodeReport]) -> None:
    for report in answers:
        for name, position in sorted(report.positions.items()):
            # LiteFS syncs a file before a replica gets it, and keeps the last.
            own = LtxFiles(data_path / "dbs" / name / "ltx").last
            if position.txid > own:
                raise SupervisorError(
                    f'LITEFS["DATA_PATH"]: in {str(data_path)!r} database {name!r} is at TXID {own:x} (0: not there), '
                    f"and on {report.name} at {position.txid:x}. As the primary this node would make the others drop "
                    f'what it lacks. Bring the directory back as it was, or set LITEFS["PRIMARY"] to {report.name!r} '
                    "on all nodes and start that one first."
                )
