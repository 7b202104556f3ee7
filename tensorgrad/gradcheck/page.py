"""The template of the HTML report; `report` fills in the parts between percent signs."""

PAGE = """<!doctype html>
<html lang=en>
<meta charset=utf-8>
<meta name=viewport content="width=device-width">
<title>Gradient check</title>
<style>
:root { color-scheme: light dark; --ink: #1f2328; --dim: #6b7280; --paper: #fff; --card: #f6f7f9; --rule: #e3e5e9;
        --good: #1a7f4b; --bad: #c62828; --dot: #3b6fd4 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --dim: #9aa1ab; --paper: #15171a; --card: #1e2125; --rule: #30343a;
          --good: #4cc38a; --bad: #ff6b6b; --dot: #7aa2f7 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 1100px; margin: 2.5rem auto; padding: 0 1.25rem }
h1 { font-size: 1.7rem; margin: 0 0 .2rem } h1 b { font-weight: 600 }
h2 { font-size: 1.1rem; margin: 2rem 0 .6rem }
p { margin: .2rem 0; max-width: 52rem } .dim { color: var(--dim) } .good { color: var(--good) }
.bad { color: var(--bad) }
svg { width: 100%; background: var(--card); border-radius: 10px; padding: 14px 18px; box-sizing: border-box }
svg text { font-size: 12px; fill: var(--ink) } svg text.dim { fill: var(--dim) }
circle { fill: var(--dot); fill-opacity: .35 } circle.bad { fill: var(--bad); fill-opacity: 1 }
.grid { stroke: var(--rule) } .limit { stroke: var(--bad); stroke-width: 1.5 }
input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
        padding: .35rem .7rem; width: 16rem; margin-bottom: .6rem }
details { border-bottom: 1px solid var(--rule) }
summary { cursor: pointer; padding: .35rem .2rem; display: flex; gap: 1.5rem; align-items: baseline }
summary::before { content: "\\203a"; width: .6rem; color: var(--dim) }
details[open] summary::before { content: "\\2304" }
summary code { width: 11rem; font-weight: 600 } summary span { width: 7rem } summary span:last-child { width: auto }
table { border-collapse: collapse; font-size: 13px; margin: .2rem 0 1rem 1.2rem; width: calc(100% - 1.2rem) }
th { text-align: left; font-weight: 500; color: var(--dim) }
td, th { padding: .15rem .8rem .15rem 0; vertical-align: top }
tr:nth-child(even) { background: var(--card) } tr.bad td { color: var(--bad) }
.n { white-space: nowrap; font-variant-numeric: tabular-nums } .bar { display: inline-block; width: 60px; height: 6px;
     margin-left: 8px; background: var(--rule); border-radius: 3px; vertical-align: middle; overflow: hidden }
.bar i { display: block; height: 100%; background: var(--dot) }
code { font-family: ui-monospace, monospace }
</style>
<h1>Gradient check: <b class=%STATE%>%VERDICT%</b></h1>
<p>%SUMMARY%</p>
<p class=dim>%VERSIONS%</p>
<h2>Relative error of every check</h2>
%CHART%
<p class=dim>Every dot is a check; the red line is the largest error allowed. float64 is compared with central
differences, every element of the Jacobian; the other dtypes, results and gradients, with float64 from the same rounded
inputs; ops without a gradient with NumPy. Exact results are at the left edge.</p>
<h2>Every op and example</h2>
<input id=filter placeholder="filter by name" aria-label="filter by name">
%OPS%
<script>
document.getElementById("filter").oninput = event => {
  for (const op of document.querySelectorAll("details")) op.hidden = !op.dataset.op.includes(event.target.value.trim())
}
</script>
</html>
"""
