"""Losslessness of the reference, by exact enumeration."""
import time
import pytest
from exact import *
from specdec_kernels.reference.verify import match, token, traversal

CASES=[Case((0,1,2),"III"),Case((0,0),"II"),Case((0,0,0),"WWW"),Case((0,0,0),"WWW",vocab=2),Case((0,0,1,1,2),"IIIII"),Case((0,0,1,1,2),"WWIIP")]
@pytest.mark.parametrize("rule",[match,token,traversal])
@pytest.mark.parametrize("case",CASES,ids=lambda c:f"{c.kinds}")
def test_l(case,rule):
    t=time.time()
    law,acc=emitted(case,rule)
    d=distance(case,law)
    print(case.kinds,rule.__name__,d,acc,time.time()-t)
    assert d<1e-12
