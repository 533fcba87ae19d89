"use strict"
{
  const data = JSON.parse(document.querySelector(".sb-data").textContent), { rows, metrics, models, costs } = data
  rows.forEach((row, i) => { row.i = i })
  const LIMIT = 60, SVG = "http://www.w3.org/2000/svg"

  // Elements. Texts are texts: nothing of the data is ever read as HTML.
  const fill = (node, attributes, children) => {
    for (const [key, value] of Object.entries(attributes)) if (value != null && value !== false) node.setAttribute(key, value === true ? "" : value)
    node.append(...children.flat(Infinity).filter(child => child != null && child !== ""))
    return node
  }
  const el = (name, attributes = {}, ...children) => fill(document.createElement(name), attributes, children)
  const draw = (name, attributes = {}, ...children) => fill(document.createElementNS(SVG, name), attributes, children)
  const link = path => el("a", { href: data.base + path }, path.replace(/^results\//, ""))
  const short = (value, digits = 2) => value == null ? "—" : value.toFixed(digits)
  const passes = value => value == null ? "—" : String(Math.round(value * 100) / 100)
  const gigabytes = bytes => (bytes / 1e9).toFixed(1) + " GB"
  const unique = values => [...new Set(values)].sort()
  const number = input => input.value.trim() === "" || !Number.isFinite(+input.value) ? null : +input.value
  const options = (select, pairs) => select.replaceChildren(...pairs.map(([value, text]) => el("option", { value }, text)))
  const shown = (bounds, metric) => {
    if (!bounds) return ["—"]
    const { factor, digits } = metrics[metric], f = v => short(v * factor, factor === 100 ? 1 : digits)
    return [f(bounds[0]), bounds[1] == null ? null : el("small", {}, `[${f(bounds[1])}, ${f(bounds[2])}]`)]
  }
  const speed = bounds => bounds ? [short(bounds[0]) + "×", bounds[1] == null ? null : el("small", {}, `[${short(bounds[1])}, ${short(bounds[2])}]`)] : ["—"]
  const fewer = row => row.passes && row.steps ? (row.role === "method" && row.steps <= row.passes ? referenceSteps(row) : row.steps) / row.passes : null
  const references = new Map(rows.filter(row => row.role === "reference").map(row => [row.file, row.steps]))
  const referenceSteps = row => references.get(row.file) ?? 50 // `steps` takes fewer of them

  // The place of a row among those that are shown: one more than the rows that beat it by more than chance.
  const places = (list, metric) => {
    const present = new Set(list.map(row => row.i)), found = new Map()
    for (const row of list) {
      const lost = row.beaten_by?.[metric]
      if (lost && row.scores[metric]) found.set(row, 1 + lost.filter(i => present.has(i)).length)
    }
    const count = new Map()
    for (const [row, place] of found) count.set(row.file + place, (count.get(row.file + place) ?? 0) + 1)
    return new Map([...found].map(([row, place]) => [row, { place, text: place + (count.get(row.file + place) > 1 ? "=" : "") }]))
  }

  const board = document.getElementById("sb-board")
  if (board) {
    const form = board.querySelector("form"), get = name => form.elements[name], select = board.querySelector("[name=speed]")
    const [head, body] = [board.querySelector("thead"), board.querySelector("tbody")], more = board.querySelector("[data-do=more]")
    let sort = { key: "score", down: true }, all = false
    const columns = [
      ["method", "Method", row => row.name], ["score", null, row => row.scores[get("metric").value]?.[0]], ["place", "Place", null],
      ["passes", "Passes", row => row.passes], ["speed", "Speedup", row => row.speedup?.[0]], ["samples", "Prompts", row => row.samples],
      ["model", "Model", row => row.model], ["status", "Status", row => row.status], ["file", "Source", row => row.file],
    ]
    const heads = columns.map(([key]) => {
      const button = el("button", { type: "button" })
      button.onclick = () => { sort = sort.key === key ? { key, down: !sort.down } : { key, down: ["score", "speed"].includes(key) && rises() }; update() }
      return { key, button, cell: el("th", { scope: "col" }, button) }
    })
    const rises = () => metrics[get("metric").value].up
    head.append(el("tr", {}, heads.map(each => each.cell)))
    options(get("model"), [["", "all"], ...unique(rows.map(row => row.model)).map(name => [name, name])])
    const tables = () => {
      const before = get("file").value, model = get("model").value
      const files = unique(rows.filter(row => !model || row.model === model).map(row => row.file))
      options(get("file"), [["", "all"], ...files.map(name => [name, name.replace(/^results\/|\.csv$|\/table\.csv$/g, "")])])
      get("file").value = files.includes(before) ? before : ""
    }
    const passing = () => {
      const text = get("find").value.trim().toLowerCase(), [least, most] = [number(get("least")), number(get("most"))]
      const is = { model: get("model").value, file: get("file").value, status: get("status").value }
      return rows.filter(row => (!is.model || row.model === is.model) && (!is.file || row.file === is.file)
        && (!is.status || row.status.startsWith(is.status)) && (get("floors").checked || row.role === "method")
        && (least == null || row.passes >= least) && (most == null || row.passes != null && row.passes <= most)
        && (!text || `${row.name} ${row.algo} ${row.about ?? ""}`.toLowerCase().includes(text)))
    }
    const detail = (row, metric) => {
      const facts = [["Configuration", row.about], ["Role", row.role === "method" ? null : row.role], ["Withdrawn", row.withdrawn]]
      for (const [name, { label }] of Object.entries(metrics)) if (row.scores[name] && name !== metric) facts.push([label, el("span", {}, shown(row.scores[name], name))])
      facts.push(...Object.entries(row.facts ?? {}))
      const command = /^(printed|$)/.test(row.command ?? "") ? row.command : el("span", {}, el("code", {}, row.command), ` makes the table; this row is ${row.name} in it` + (row.facts?.Commit ? `, at commit ${row.facts.Commit}` : ""))
      facts.push([row.status === "cited" ? "Source" : "Command", command], ["Record", link(row.file)])
      const samples = data.pictures[row.i] ?? []
      if (samples.length) facts.push(["Samples", el("div", { class: "sb-samples" }, samples.map(({ uri, prompt }) => el("figure", {}, el("img", { src: uri, alt: prompt, loading: "lazy" }), el("figcaption", {}, prompt))))])
      return el("dl", {}, facts.filter(([, text]) => text).map(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]))
    }
    const line = (row, metric, place) => {
      const button = el("button", { type: "button", "aria-expanded": "false" }, row.name)
      const tr = el("tr", { class: row.withdrawn ? "sb-out" : null },
        el("th", { scope: "row" }, button, row.name.startsWith(row.algo) ? null : el("small", {}, row.algo)),
        el("td", { class: place?.place === 1 ? "sb-first" : null }, shown(row.scores[metric], metric)), el("td", {}, place?.text ?? "—"),
        el("td", {}, passes(row.passes), row.steps ? el("small", {}, `of ${referenceSteps(row)}`) : null), el("td", {}, speed(row.speedup)),
        el("td", {}, row.samples ?? "—"), el("td", {}, row.model), el("td", { title: row.withdrawn || null }, row.status), el("td", {}, link(row.file)))
      button.onclick = () => {
        const open = button.getAttribute("aria-expanded") === "true"
        button.setAttribute("aria-expanded", String(!open))
        if (open) tr.nextSibling.remove()
        else tr.after(el("tr", { class: "sb-detail" }, el("td", { colspan: columns.length }, detail(row, metric))))
      }
      return tr
    }
    const update = () => {
      const metric = get("metric").value, list = passing(), placed = places(list, metric)
      const key = sort.key === "place" ? row => placed.get(row)?.place : columns.find(each => each[0] === sort.key)[2]
      const order = (a, b) => typeof a === "string" ? a.localeCompare(b) : a - b
      list.sort((a, b) => {
        const [x, y] = [key(a), key(b)]
        if (x == null || y == null) return (x == null) - (y == null)
        return (sort.down ? -1 : 1) * order(x, y) || a.i - b.i
      })
      for (const { key: name, button, cell } of heads) {
        button.textContent = name === "score" ? metrics[metric].label + (rises() ? " ↑" : " ↓") : columns.find(each => each[0] === name)[1]
        cell.setAttribute("aria-sort", sort.key === name ? (sort.down ? "descending" : "ascending") : "none")
      }
      const some = all ? list : list.slice(0, LIMIT)
      body.replaceChildren(...some.map(row => line(row, metric, placed.get(row))))
      more.parentNode.hidden = some.length === list.length
      more.textContent = `Show all ${list.length} rows`
      const firsts = list.filter(row => placed.get(row)?.place === 1).length
      const tables = unique(list.map(row => row.file)).length, taken = list.map(row => row.passes).filter(p => p != null)
      const [least, most] = [Math.min(...taken), Math.max(...taken)]
      board.querySelector(".sb-count").textContent = `${list.length} of ${rows.length} rows, ${tables} ${tables === 1 ? "table" : "tables"}`
        + (most > 1.05 * least ? `, ${passes(least)} to ${passes(most)} passes: choose some to compare at an equal budget` : "")
        + (tables === 1 && firsts > 1 ? `. ${firsts} rows share the first place: these prompts do not tell them apart` : "")
      plots(list, metric, placed)
    }
    const plots = (list, metric, placed) => {
      const measured = select.value === "measured", x = row => measured ? row.speedup?.[0] : fewer(row)
      const usable = list.filter(row => row.scores[metric] && x(row) && !row.withdrawn && row.role === "method")
      const found = unique(usable.map(row => row.model)).slice(0, 8)
      const kinds = found.map(model => plot(model, usable.filter(row => row.model === model), metric, x, measured, placed))
      board.querySelector(".sb-plots").replaceChildren(...(kinds.length ? kinds : [el("p", {}, measured ? "No shown row has a measured speedup and this metric." : "No shown row has this metric.")]))
    }
    form.oninput = event => { all = false; if (event.target.name === "model") tables(); if (event.target.name === "metric") sort = { key: "score", down: rises() }; update() }
    form.onsubmit = event => event.preventDefault()
    select.oninput = update
    more.onclick = () => { all = true; update() }
    board.querySelector("[data-do=all]").onclick = () => { form.reset(); get("model").value = get("file").value = ""; tables(); update() }
    const first = new URLSearchParams(location.search)
    get("model").value = !first.size && rows.some(row => row.model === "tiny-flux") ? "tiny-flux" : ""
    for (const name of ["model", "metric", "least", "most", "status", "find"]) if (first.has(name)) get(name).value = first.get(name)
    tables()
    const usual = "results/tiny/flux/slow/table.csv"
    get("file").value = first.get("file") ?? (first.size || !rows.some(row => row.file === usual) ? "" : usual)
    sort.down = rises()
    update()
  }

  function plot(model, list, metric, x, measured, placed) {
    const { factor, label } = metrics[metric], [W, H, L, R, T, B] = [460, 300, 46, 14, 10, 36]
    const ys = list.flatMap(row => row.scores[metric].filter(v => v != null).map(v => v * factor)), xs = list.map(x)
    const span = values => { const [a, b] = [Math.min(...values), Math.max(...values)], pad = (b - a || 1) * .06; return [a - pad, b + pad] }
    const [[x0, x1], [y0, y1]] = [span(xs), span(ys)], X = v => L + (v - x0) / (x1 - x0) * (W - L - R), Y = v => H - B - (v - y0) / (y1 - y0) * (H - T - B)
    const ticks = (a, b) => { const raw = (b - a) / 5, p = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map(k => k * p).find(k => k >= raw)
      return Array.from({ length: Math.floor(b / step) - Math.ceil(a / step) + 1 }, (_, i) => +((Math.ceil(a / step) + i) * step).toPrecision(6)) }
    const parts = [
      ...ticks(x0, x1).map(v => [draw("line", { class: "sb-grid", x1: X(v), x2: X(v), y1: T, y2: H - B }), draw("text", { x: X(v), y: H - B + 14, "text-anchor": "middle" }, String(v))]),
      ...ticks(y0, y1).map(v => [draw("line", { class: "sb-grid", x1: L, x2: W - R, y1: Y(v), y2: Y(v) }), draw("text", { x: L - 5, y: Y(v) + 4, "text-anchor": "end" }, String(v))]),
      draw("text", { x: (L + W - R) / 2, y: H - 4, "text-anchor": "middle" }, measured ? "measured speedup, times" : "steps of the reference / passes"),
      draw("text", { x: 12, y: (T + H - B) / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${(T + H - B) / 2})` }, label)]
    const taken = []
    for (const row of [...list].sort((a, b) => (placed.get(a)?.place ?? 99) - (placed.get(b)?.place ?? 99))) {
      const [mean, low, high] = row.scores[metric].map(v => v == null ? null : v * factor), [cx, cy] = [X(x(row)), Y(mean)], bars = []
      if (low != null) bars.push(draw("line", { class: "sb-bar", x1: cx, x2: cx, y1: Y(low), y2: Y(high) }))
      if (measured && row.speedup[1] != null) bars.push(draw("line", { class: "sb-bar", x1: X(row.speedup[1]), x2: X(row.speedup[2]), y1: cy, y2: cy }))
      parts.push(bars, draw("circle", { class: "sb-dot" + (low == null ? " sb-cited" : ""), cx, cy, r: 4 }, draw("title", {}, `${row.name}: ${short(mean)}${low == null ? "" : ` [${short(low)}, ${short(high)}]`} at ${short(x(row))}×`)))
      const right = cx < W * .62, [tx, w] = [right ? cx + 7 : cx - 7, row.name.length * 6], box = [right ? tx : tx - w, cy - 6, w]
      if (taken.length < 8 && !taken.some(([a, b, c]) => Math.abs(b - box[1]) < 12 && a < box[0] + w && box[0] < a + c)) {
        taken.push(box)
        parts.push(draw("text", { class: "sb-named", x: tx, y: cy + 4, "text-anchor": right ? "start" : "end" }, row.name))
      }
    }
    const about = `${label} of ${list.length} rows of ${model} by ${measured ? "measured speedup" : "fewer passes"}; the table has the same figures`
    return el("figure", {}, el("figcaption", {}, model), draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": about }, parts))
  }

  const which = document.getElementById("sb-which")
  if (which) {
    const form = which.querySelector("form"), get = name => form.elements[name], answer = which.querySelector(".sb-answer")
    options(get("model"), unique(costs.map(line => line.model)).map(name => [name, name]))
    if (costs.some(line => line.model === "wan14b")) get("model").value = "wan14b"
    const peak = (line, p) => line.weights_bytes + line.working_bytes + line.cache_bytes + (line.cache_bytes_a_pass ?? 0) * (p - line.passes)
    // The most passes with which the operations of a sample are so many times fewer; null if no number of passes is enough.
    const most = (line, times) => {
      if (line.skipped_step_flops == null) return null
      const { full_step_flops: full, skipped_step_flops: skipped, steps } = line, found = Math.floor(((steps * full) / times - steps * skipped) / (full - skipped) + 1e-9)
      return found < 1 ? null : Math.min(found, steps)
    }
    const video = line => line.size.split(" x ").length > 2
    const candidates = (model, size, card, times) => costs.filter(line => line.model === model && line.size === size && line.method !== "nocache").map(line => {
      const p = most(line, times), bytes = p == null ? null : peak(line, p)
      return { line, p, bytes, fits: bytes != null && bytes <= card * 1e9, tight: bytes != null && bytes > card * 1e9 - 1.5e9 }
    })
    const table = (caption, head, lines) => el("div", { class: "sb-scroll", tabindex: 0, role: "region", "aria-label": caption }, el("table", { class: "sb-fits" },
      el("thead", {}, el("tr", {}, head.map(text => el("th", { scope: "col" }, text)))), el("tbody", {}, lines.map(cells => el("tr", {}, cells.map(cell => el("td", {}, cell)))))))
    const update = () => {
      const model = get("model").value, card = number(get("card")), times = number(get("speed"))
      if (!model || !(card > 0) || !(times >= 1)) { answer.replaceChildren(el("p", {}, "Give a card of more than 0 GB and a speed of 1 or more.")); return }
      const known = models[model] ?? {}, sizes = unique(costs.filter(line => line.model === model).map(line => line.size))
      const plain = size => costs.find(line => line.model === model && line.size === size && line.method === "nocache")
      const good = sizes.flatMap(size => candidates(model, size, card, times).filter(each => each.fits)), parts = []
      const holds = sizes.filter(size => peak(plain(size), 0) <= card * 1e9)
      if (!holds.length) {
        const least = plain(sizes.reduce((a, b) => peak(plain(a), 0) < peak(plain(b), 0) ? a : b))
        const names = unique(costs.map(line => line.model)).filter(name => costs.some(line => line.model === name && line.method !== "nocache" && candidates(name, line.size, card, times).some(each => each.fits)))
        answer.replaceChildren(el("p", { class: "sb-verdict" }, el("b", {}, "No. "), `${model} does not fit ${card} GB, at any size that was computed: at ${least.size} weights take ${gigabytes(least.weights_bytes)}`
          + ` and the denoiser's other tensors ${gigabytes(least.working_bytes)}, before anything is cached. model.offload=group needs less: docs/memory.md.`),
          el("p", {}, names.length ? `On ${card} GB, ${times}× is within reach of a method with: ${names.join(", ")}.` : `No model that was computed reaches ${times}× on ${card} GB.`))
        return
      }
      parts.push(el("p", { class: "sb-verdict" }, el("b", {}, good.length ? `${unique(good.map(each => each.line.method)).length} methods fit ${card} GB and can reach ${times}×` : `No counted method fits ${card} GB and reaches ${times}×`),
        ` by operations, at ${unique((good.length ? good.map(each => each.line.size) : holds)).join(" or ")}. `, good.length ? "Which of them keeps the quality best is below, as far as anything was measured." : "Take a larger card, a smaller size or a lower speed."))
      for (const size of holds) {
        const list = candidates(model, size, card, times)
        parts.push(el("h2", {}, `Memory and operations, computed: ${size}`), table(`Memory and operations at ${size}`, ["Method", "Fits", `Most passes for ${times}×`, "Memory", "Of it cache"], list.map(({ line, p, bytes, fits, tight }) => [
          line.method, line.skipped_step_flops == null ? "skipped steps differ: not counted" : p == null ? `no: a skipped step costs too much` : fits ? tight ? "yes, but tight" : "yes" : "no",
          p == null ? "—" : `${p} of ${line.steps}`, bytes == null ? "—" : gigabytes(bytes), bytes == null ? "—" : gigabytes(bytes - line.weights_bytes - line.working_bytes)])))
      }
      parts.push(...quality(model, known, times))
      const names = unique(good.map(each => each.line.method.split(",")[0]))
      if (names.length) parts.push(el("h2", {}, "What decides it"), el("p", {}, `Your own prompts, at equal passes or latency: of each candidate (${names.join(", ")}) what it costs, a run, and a table.`),
        el("ul", {}, [`python src/cost.py model=${model} algo=${names[0]} card=${card}`, `python src/${video(good[0].line) ? "text_to_video" : "text_to_image"}.py model=${model} algo=${names[0]} exp_name=${names[0]} prompt_file=yours.txt`].map(text => el("li", {}, el("code", {}, text)))))
      answer.replaceChildren(...parts)
    }
    const quality = (model, known, times) => {
      const reach = row => row.speedup ? row.speedup[0] >= times : fewer(row) >= times
      const fit = rows.filter(row => row.role === "method" && !row.withdrawn && reach(row) && !row.facts?.Replaced), parts = []
      const gpu = fit.filter(row => row.model === model && row.speedup)
      const cited = fit.filter(row => row.status === "cited" && row.model === known.paper && row.scores.psnr).sort((a, b) => b.scores.psnr[0] - a.scores.psnr[0])
      const small = fit.filter(row => row.model === known.miniature && row.scores.psnr && row.beaten_by)
      if (gpu.length) parts.push(el("h2", {}, `Speed of ${model}, measured with random weights`), table("Measured speed", ["Row", "Passes", "Speedup", "Source"], gpu.map(row => [row.name, `${passes(row.passes)} of ${row.steps}`, speed(row.speedup), link(row.file)])))
      if (cited.length) parts.push(el("h2", {}, `Quality of ${known.paper}, as printed`), el("p", { class: "sb-note" }, "Printed means without intervals, on their authors' prompts and cards: the order of close rows is not known. Compare within a table."),
        table("Printed quality", ["Row", "Speedup", "PSNR dB ↑", "LPIPS ↓", "Source"], cited.slice(0, 12).map(row => [[row.name, row.about ? el("small", {}, row.about) : null], speed(row.speedup), shown(row.scores.psnr, "psnr"), shown(row.scores.lpips, "lpips"), link(row.file)])))
      // The newest and largest table of the miniature, so that rows are compared on the same prompts.
      const files = unique(small.map(row => row.file)).map(file => small.filter(row => row.file === file)).sort((a, b) => b.length - a.length), list = (files[0] ?? []).sort((a, b) => b.scores.psnr[0] - a.scores.psnr[0])
      let ties = 0
      if (list.length) {
        const placed = places(list, "psnr"), best = list.filter(row => placed.get(row)?.place === 1)
        ties = best.length
        parts.push(el("h2", {}, `Quality of the miniature ${known.miniature}: ${list.length > 15 ? `the 15 best of ${list.length}` : list.length} rows of one table that are as fast`), el("p", { class: "sb-note" }, "A miniature exercises the code; it is no evidence for the real model. Speed is measured where the table has it, else the reference's steps by the passes."),
          table("Quality of the miniature", ["Row", "Passes", "Speedup", "PSNR dB ↑", "Place"], list.slice(0, 15).map(row => [row.name, passes(row.passes), speed(row.speedup), shown(row.scores.psnr, "psnr"), placed.get(row)?.text ?? "—"])), el("p", {}, link(list[0].file)))
      }
      const doubts = ["No quality of real weights was measured here: the order of methods on " + model + " is not known from these rows."]
      if (!cited.length) doubts.push(known.paper ? `No printed row of ${known.paper} is ${times} times as fast.` : `No paper's table here is of ${model}.`)
      if (!list.length) doubts.push(known.miniature ? `No compared row of ${known.miniature} is ${times} times as fast.` : "No miniature stands for it.")
      if (ties > 1) doubts.push(`Even on the miniature ${ties} rows share the first place: its prompts do not tell them apart.`)
      if (!gpu.length) doubts.push(`No row measured a speedup of ${times}× with ${model}: its speeds are counted operations.`)
      return [...parts, el("h2", {}, "What the data cannot tell"), el("ul", {}, doubts.map(text => el("li", {}, text)))]
    }
    form.oninput = update
    form.onsubmit = event => event.preventDefault()
    if (costs.length) update()
    else answer.replaceChildren(el("p", {}, "Nothing was computed of memory: python scripts/method_memory.py writes results/memory/methods.csv."))
  }
}
