"""The page's style sheet: no fonts or files from elsewhere, light and dark, good on paper."""

STYLE = """
:root { --ink: #1c2430; --soft: #5b6675; --line: #dde2e8; --paper: #fff; --tile: #f5f7f9;
  --a: #2166ac; --b: #e08214; --c: #b2182b; --d: #4d9221;
  --limit: #8b1a89; --mark: #5b6675; --good: #1a7f37; --bad: #c0272d; --odd: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e5e9ef; --soft: #9aa6b5; --line: #333c48;
  --paper: #14181e; --tile: #1d232b; --a: #6cb0f0; --b: #f5a742; --c: #f2777c; --d: #8fce5f;
  --limit: #e08ade; --mark: #9aa6b5; --good: #4cc26a; --bad: #ff7b72; --odd: #e3b341; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 24px; color: var(--ink);
  background: var(--paper); font: 15px/1.45 system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
header { display: flex; align-items: center; gap: 14px; flex-wrap: wrap; }
h1 { font-size: 21px; margin: 0; font-weight: 600; }
h2 { font-size: 16px; margin: 30px 0 10px; font-weight: 600; }
.verdict { border-radius: 6px; padding: 4px 14px; color: var(--paper); font-weight: 700;
  text-transform: uppercase; letter-spacing: .04em; background: var(--odd); }
.verdict.pass { background: var(--good); } .verdict.fail { background: var(--bad); }
.reasons { margin: 12px 0 0; padding-left: 20px; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 10px;
  margin-top: 20px; }
.figures div { background: var(--tile); border-radius: 8px; padding: 10px 14px; }
.figures b { display: block; font-size: 20px; font-weight: 600; }
.figures span { color: var(--soft); font-size: 13px; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(520px, 100%), 1fr));
  gap: 18px 26px; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-weight: 600; font-size: 14px; }
.legend { margin: 2px 0 0; font-size: 13px; color: var(--soft); }
.legend span { margin-right: 16px; }
.legend span::before { content: ""; display: inline-block; width: 14px; height: 3px;
  margin-right: 6px; vertical-align: middle; background: currentColor; }
.legend .a::before { background: var(--a); } .legend .b::before { background: var(--b); }
.legend .c::before { background: var(--c); } .legend .d::before { background: var(--d); }
svg { width: 100%; height: auto; display: block; }
svg text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
svg .foot { fill: var(--soft); }
svg .grid { stroke: var(--line); fill: none; }
svg .line { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg path.a { stroke: var(--a); } svg path.b { stroke: var(--b); } svg path.c { stroke: var(--c); }
svg path.d { stroke: var(--d); } svg circle { r: 1.8px; }
svg rect.a, svg circle.a { fill: var(--a); } svg circle.b { fill: var(--b); }
svg circle.c { fill: var(--c); } svg circle.d { fill: var(--d); }
svg path.limit { stroke: var(--limit); stroke-dasharray: 6 4; stroke-width: 1.5; }
svg text.limit { fill: var(--limit); paint-order: stroke; stroke: var(--paper);
  stroke-width: 4px; }
svg path.mark { stroke: var(--mark); stroke-dasharray: 2 3; } svg text.mark { fill: var(--mark); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
td, th { text-align: left; padding: 5px 18px 5px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
th { color: var(--soft); font-weight: 500; }
.yes { color: var(--good); font-style: normal; } .no { color: var(--bad); font-style: normal; }
@media print { body { max-width: none; } .plots { grid-template-columns: 1fr 1fr; } }
"""
