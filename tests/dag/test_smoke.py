import json, time
def test_x(built):
    for k,v in built.ended.items(): print(k,v.outcome,round(v.seconds,1))
    print((built.root/"data/report/summary.json").read_text()[:3000])
    print(built.root)
