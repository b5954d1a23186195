import sys, time
from tests.scheduling.simulator import *
from collections import Counter
def run(truth, rates, label, secs=120, seeds=(1,2,3)):
    for pol in ("fcfs","headway"):
        agg=Counter(); n=Counter(); sh=0; tot=0; end=0; t=time.time()
        for s in seeds:
            o=simulate(demo_mix(s,secs,rates),pol,truth,seed=s)
            for i,j in o.jobs.items():
                n[j.app]+=1; agg[j.app]+=bool(o.scores[i].on_time)
            sh+=len(o.shed); tot+=o.on_time(); end+=o.end_ns/1e9
        print(label,pol,{a:f"{agg[a]/n[a]:.3f}/{n[a]}" for a in n},"ontime",tot,"shed",sh,"end",round(end/len(seeds),1),"wall",round(time.time()-t,1), flush=True)
if __name__=="__main__":
    for k in (0.75,0.9,1.2):
        run(LAPTOP,{"chat":.55*k,"completion":1.1*k,"summary":.12*k},f"laptop {k}")
        run(FOUR_TIMES,{"chat":2.2*k,"completion":4.4*k,"summary":.48*k},f"4x {k}",60)
