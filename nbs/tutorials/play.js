// The emotion-wheel F, the length penalty and the advantage, in the browser. tests/test_play.py
// compares them with the Python. No other host is asked for anything, and what is typed goes into
// the page as text only.
function playReward(data) {
  const masks = new Map();   // form -> one bit mask per wheel
  for (const [codes, forms] of data.forms) for (const form of forms.split(",")) masks.set(form, codes);
  const trimmed = text => text.replace(/^[ .\-_']+|[ .\-_']+$/g, "");
  const separators = new RegExp([
    /[[\]{}()<>…*#|/\\,;:&+~=%$^@!?\n\t]+/,          // never part of a label
    /(?:^|[ ])(?:[–—]|-+)(?=[ ]|$)/,                 // a dash between words, or a bullet
    /(?<!\w)'|'(?!\w)/,                              // quotes, but not the apostrophe inside a word
    /(?<![.])[.]+(?=\s|,|$)/,                        // the end of a sentence
    /[ ](?:and|or|but|as well as|along with)(?=[ ])/,
  ].map(part => part.source).join("|"));
  const lead = /^(?:and|or|but|also|then|both|either|feeling|maybe|perhaps|probably)\s+/;
  const tail = /\s+(?:because|due to|owing to)\b.*|\s+(?:and|or)$/;
  const filler = /^(?:etc|e\.?g|i\.e|(?:and )?so on|so forth|among others)$/;   // never in a list
  const penalties = {   // the factor, for n words where the gold has g < n
    none: () => 1,
    p1: (n, g) => 1 / (n - g + 1),
    p2: (n, g) => g / n,
    p3: (n, g) => Math.log(g) / Math.log(n),
    "p3+1": (n, g) => Math.log(g + 1) / Math.log(n + 1),
  };

  function goldLabels(text) {   // as parse_labels(text, strict=True)
    if (text[0] === "[") text = text.slice(1);
    if (text.endsWith("]")) text = text.slice(0, -1);
    return text.split(/[,'"]/).map(x => x.trim()).filter(Boolean);
  }
  function answerLabels(text) {   // as parse_labels(text), for a list of words; each as often as written
    const clean = part => {
      let label = trimmed(part.trim().replace(/\s+/g, " ")), shorter;
      while ((shorter = label.replace(lead, "")) !== label) label = shorter;
      return trimmed(label.replace(tail, ""));
    };
    const plain = text.trim().toLowerCase().replace(/[‘’]/g, "'").replace(/[“”„«»`]/g, '"')
      .replace(/"\s*"/g, ",").replaceAll('"', " ");
    const parts = plain.split(separators).map(clean);
    return parts.filter(x => /\p{L}/u.test(x) && !filler.test(x));
  }
  const known = word => masks.get(word.toLowerCase().trim());
  const sectors = words => data.wheels.map((_, k) => words.reduce((all, w) => all | (known(w)?.[k] ?? 0), 0));
  const count = mask => { let n = 0; for (; mask; mask &= mask - 1) n++; return n; };

  function score(gold, answer, penalty) {   // f and reward are null where no wheel knows the gold
    const labels = goldLabels(gold), written = answerLabels(answer);
    const g = sectors(labels), q = sectors(written), on = g.filter(Boolean).length;
    const f = on ? g.reduce((sum, m, k) => sum + 2 * count(m & q[k]) / Math.max(count(m) + count(q[k]), 1), 0) / on : null;
    const nGold = Math.max(1, new Set(labels.map(x => x.toLowerCase().trim())).size), n = written.length;
    const factor = n > nGold ? penalties[penalty](n, nGold) : 1;
    const unknown = [...new Set(written)].filter(w => !known(w));
    return {f, factor, reward: f === null ? null : f * factor, gold: g, answer: q, unknown};
  }
  function advantages(rewards, eps = 1e-4) {
    if (rewards.includes(null)) return rewards.map(() => null);
    const mean = rewards.reduce((a, b) => a + b, 0) / rewards.length;
    const spread = Math.sqrt(rewards.reduce((sum, r) => sum + (r - mean) ** 2, 0) / (rewards.length - 1));
    return rewards.map(r => (r - mean) / (spread + eps));
  }
  function group(gold, answers, penalty) {
    const rows = answers.map(answer => score(gold, answer, penalty)), a = advantages(rows.map(r => r.reward));
    return rows.map((row, i) => ({...row, advantage: a[i]}));
  }
  return {group, penalties: Object.keys(penalties)};
}

function playPage(box, data) {
  const reward = playReward(data), svg = "http://www.w3.org/2000/svg";
  const make = (name, settings = {}, ...inside) => {
    const element = Object.assign(document.createElement(name), settings);
    element.append(...inside);
    return element;
  };
  const draw = (name, settings, text = "") => {
    const element = document.createElementNS(svg, name);
    for (const [key, value] of Object.entries(settings)) element.setAttribute(key, value);
    element.textContent = text;
    return element;
  };
  const number = (x, signed) => x === null ? "–" : (signed && x >= 0.005 ? "+" : "") + x.toFixed(2).replace("-", "−");
  const choice = (name, value, checked) => make("input", {type: "radio", name, value, checked, onchange: show});

  const gold = make("input", {value: data.gold, oninput: show, autocomplete: "off", spellcheck: false, className: "gold"});
  const kinds = reward.penalties.map(kind => make("label", {}, choice("penalty", kind, kind === "p2"), kind));
  const rows = data.answers.map((value, i) => {
    const answer = make("input", {value, oninput: show, autocomplete: "off", spellcheck: false, className: "answer"});
    answer.setAttribute("aria-label", `Answer ${i + 1}`);
    answer.addEventListener("focus", () => { pick.checked = true; show(); });
    const pick = choice("shown", i, i === 2), numbers = make("output", {className: "numbers"});
    const bar = make("span", {className: "bar"}, make("i"));
    bar.ariaHidden = "true";
    const label = make("label", {}, pick, `Answer ${i + 1}`);
    return {answer, pick, numbers, bar, box: make("div", {className: "row"}, label, answer, numbers, bar)};
  });
  const wheels = make("div", {className: "wheels"}), note = make("p", {className: "note"});
  note.setAttribute("role", "status");

  function slice(i, n, [near, far] = [16, 98]) {   // the outline of the i-th of n slices
    const at = (radius, turn) => [radius * Math.sin(turn), -radius * Math.cos(turn)].map(x => x.toFixed(2)).join(" ");
    const [from, to] = [i, i + 1].map(x => 2 * Math.PI * x / n);
    return `M${at(near, from)}L${at(far, from)}A${far} ${far} 0 0 1 ${at(far, to)}L${at(near, to)}A${near} ${near} 0 0 0 ${at(near, from)}Z`;
  }
  const named = (mask, names) => names.filter((_, i) => mask >> i & 1).join(", ") || "none";
  function wheel([name, names], k, row) {
    const [g, q] = [row.gold[k], row.answer[k]];
    const picture = draw("svg", {viewBox: "-100 -100 200 200", role: "img",
      "aria-label": `${name}: annotators ${named(g, names)}; answer ${named(q, names)}`});
    names.forEach((sector, i) => {
      const kind = ["empty", "missed", "wrong", "hit"][(g >> i & 1) + 2 * (q >> i & 1)];
      const path = draw("path", {d: slice(i, names.length), class: kind});
      kind === "missed" ? picture.append(path) : picture.prepend(path);   // a dashed line lies on top
    });
    names.forEach((sector, i) => {
      const turn = 360 * (i + .5) / names.length, upright = turn > 180 ? " rotate(180)" : "";
      picture.append(draw("text", {transform: `rotate(${turn - 90}) translate(57)${upright}`}, sector));
    });
    const caption = make("figcaption", {}, name);
    if (!g) caption.append(" (gold not on it)");
    return make("figure", {}, picture, caption);
  }
  function show() {
    const penalty = box.querySelector('input[name="penalty"]:checked').value;
    const found = reward.group(gold.value, rows.map(r => r.answer.value), penalty);
    found.forEach((x, i) => {
      rows[i].numbers.textContent = `F ${number(x.f)} × penalty ${number(x.factor)} = reward ${number(x.reward)}, advantage ${number(x.advantage, true)}`;
      const share = Math.min(Math.abs(x.advantage ?? 0) / 1.5, 1) * 50;
      Object.assign(rows[i].bar.firstChild.style, {width: `${share}%`, left: `${x.advantage < 0 ? 50 - share : 50}%`});
      rows[i].bar.classList.toggle("below", x.advantage < 0);
    });
    const at = rows.findIndex(r => r.pick.checked), row = found[at], unknown = row.unknown.join(", ");
    wheels.replaceChildren(...data.wheels.map((w, k) => wheel(w, k, row)));
    note.textContent = row.f === null ? "No wheel knows a word of the annotators, so this clip is not scored."
      : unknown ? `No wheel knows: ${unknown}. Such words cost nothing in F, but the penalty counts them.`
      : `Every word of answer ${at + 1} is known.`;
  }
  const swatches = [["hit", "in both"], ["missed", "annotators only"], ["wrong", "answer only"]].map(([kind, text]) => {
    const swatch = draw("svg", {viewBox: "0 0 16 16", class: "swatch", "aria-hidden": "true"});
    swatch.append(draw("rect", {x: 1, y: 1, width: 14, height: 14, class: kind}));
    return make("span", {}, swatch, text);
  });
  const style = make("style", {textContent: data.style});
  box.replaceChildren(style, make("label", {className: "line"}, "Annotators", gold),
    make("fieldset", {}, make("legend", {}, "Length penalty"), ...kinds),
    make("fieldset", {className: "group"}, make("legend", {}, "A group of four answers"), ...rows.map(r => r.box)),
    make("p", {className: "legend"}, ...swatches), wheels, note);
  show();
}
