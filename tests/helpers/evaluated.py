"""The settings of a tiny evaluation, shared by several test files."""

from fastrepulse.evaluation import Setting
from fastrepulse.evaluation.runs import Protocol
from fastrepulse.evaluation.settings import DEFAULT, INDEPENDENT
from fastrepulse.methods import CADS

N, STEPS, SEEDS = 2, 2, 2
PROTOCOL = Protocol(N, STEPS)
TINY = {"num_seeds": SEEDS, "num_particles": N, "num_inference_steps": STEPS, "compile": False}
FEW = [INDEPENDENT, DEFAULT, Setting("CADS", "0.5", {"repulsion": CADS(0.5)})]
PROGRAM = f"""
import sys
from fastrepulse.evaluation import Setting, evaluate
from fastrepulse.evaluation.settings import DEFAULT, INDEPENDENT
from fastrepulse.methods import CADS
few = [INDEPENDENT, DEFAULT, Setting("CADS", "0.5", {{"repulsion": CADS(0.5)}})]
evaluate(sys.argv[1], few, **{TINY})
"""
