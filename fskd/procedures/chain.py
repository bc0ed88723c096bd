"""Chains of teachers: teacher, teacher assistants, student."""

from fskd.config import RunConfig
from fskd.procedures.base import Procedure, Tools, procedures


@procedures.register("chain")
class Chain(Procedure):
    """Makes the teachers of a run, and theirs before them: teacher assistants are links of a chain.

    Every link is a run of its own, distilled from the link before it as its settings say, and made
    once for all chains that begin alike. Nothing before a finished link is needed any more.

    Mirzadeh et al., *Improved Knowledge Distillation via Teacher Assistant*, AAAI 2020, arXiv
    1902.03393; a protocol's ``chain`` names the networks.
    """

    def run(self, config: RunConfig, tools: Tools) -> None:
        """From the first link that is missing to the run's own teachers."""
        for link in tools.teachers(config):
            if not tools.finished(link):
                self.run(link, tools)
                tools.fit(link)
