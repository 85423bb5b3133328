  // What the cells hold: tokens, or of a grid their numbers.
  const [noun, nouns] = data.grid ?? ["position", "positions"];
  const state = { measure: 0, order: data.top_down ? "down" : "up", filter: "", kind: "all", values: false, page: 0, row: null, column: 0 };
  for (const measure of data.measures) measure.colors = measure.stops.map(channels);

  const short = (measure, value) => {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    let sign = data.comparison && value >= 0 ? "+" : "";
    let text;
    if (measure.format) {
      const { decimals, signed } = measure.format;
      text = decimals === null ? value.toExponential(0) : value.toFixed(decimals);
      if (Number(text) === 0) text = text.replace("-", "");
      else if (signed && value > 0) sign = "+";
    } else if (measure.unit === "rank") text = value.toFixed(0);
    else if (measure.unit === "probability") text = size !== 0 && size < 0.0005 ? value.toExponential(0) : value.toFixed(3);
    else text = value.toFixed(size >= 999.5 ? 0 : size >= 99.95 ? 1 : 2);
    return sign + text.replace("-", "−");
  };

  // --- What is shown ---------------------------------------------------------------------------------------------------

  const measure = () => data.measures[state.measure];
  const value = (row, column) => data.rows[row].values[state.measure]?.[column] ?? null;
  const text = (row, column) => data.grid ? (value(row, column) === null ? "" : short(measure(), value(row, column))) : data.texts[data.rows[row].top1[column]];
  const changed = (row, column) => data.comparison && data.rows[row].before[column] !== null;

  const mean = (row) => {
    const numbers = (data.rows[row].values[state.measure] ?? []).filter((number) => number !== null);
    return numbers.length ? numbers.reduce((sum, number) => sum + number, 0) / numbers.length : -Infinity;
  };
  // Parts of a block step back, where there are whole ones to count.
  const isPart = (name) => (name.match(/\./g) ?? []).length > 1;
  const whole = data.rows.some((row) => !isPart(row.name));
  const visibleRows = () => {
    const wanted = state.filter.trim().toLowerCase();
    const rows = data.rows.map((_, row) => row).filter((row) => {
      const name = data.rows[row].name;
      if (wanted && !name.toLowerCase().includes(wanted)) return false;
      if (state.kind === "blocks") return !isPart(name);
      if (state.kind === "attention") return /\battn\b|attention/.test(name);
      return true;
    });
    if (state.order === "up") return rows.reverse();
    if (state.order === "down") return rows;
    const sign = state.order === "high" ? -1 : 1;
    return rows.map((row) => [row, mean(row)]).sort((a, b) => sign * (a[1] - b[1]) || b[0] - a[0]).map(([row]) => row);
  };

  const pageCount = Math.max(1, Math.ceil(data.inputs.length / data.max_columns));
  const pageColumns = () => {
    const from = Math.floor((state.page * data.inputs.length) / pageCount);
    const to = Math.floor(((state.page + 1) * data.inputs.length) / pageCount);
    return Array.from({ length: to - from }, (_, index) => from + index);
  };
  const pageOf = (column) => {
    for (let page = 0; page < pageCount; page += 1) {
      if (column < Math.floor(((page + 1) * data.inputs.length) / pageCount)) return page;
    }
    return pageCount - 1;
  };

  // --- The grid --------------------------------------------------------------------------------------------------------

  let rows = [];
  const cells = new Map();
  const key = (row, column) => `${row} ${column}`;

  const label = (row, column) => {
    const input = data.inputs[column];
    if (data.grid) {
      const at = input.text === undefined ? "" : `, ${spoken(data.texts[input.text])}`;
      return `${short(measure(), value(row, column))}. ${data.rows[row].name}, ${noun} ${input.position}${at}. ${measure().heading}`;
    }
    const was = changed(row, column) ? `, changed from ${spoken(data.texts[data.rows[row].before[column]])}` : "";
    return `${spoken(text(row, column))}${was}. ${data.rows[row].name}, position ${input.position}, after ${spoken(data.texts[input.text])}. ${measure().heading}: ${short(measure(), value(row, column))}`;
  };

  const paint = (row, column) => {
    const cell = cells.get(key(row, column));
    if (!cell) return;
    const rgb = color(measure(), value(row, column));
    cell.style.background = rgb ? `rgb(${rgb.join(" ")})` : "";
    cell.style.color = rgb ? ink(rgb) : "";
    cell.classList.toggle("missing", !rgb);
    cell.setAttribute("aria-label", label(row, column));
    cell.querySelector("small")?.remove();
    if (state.values) cell.append(element("small", {}, short(measure(), value(row, column))));
  };

  const paintAll = () => {
    for (const row of rows) for (const column of pageColumns()) paint(row, column);
    byId("heading").textContent = measure().heading;
    byId("gradient").style.background = `linear-gradient(to right, ${measure().stops.join(", ")})`;
    byId("ticks").replaceChildren(...measure().ticks.map((tick) => {
      const made = element("span", {}, tick.label);
      made.style.left = `${tick.fraction * 100}%`;
      return made;
    }));
    for (const [index, button] of [...byId("measures").children].entries()) {
      button.setAttribute("aria-checked", String(index === state.measure));
      button.tabIndex = index === state.measure ? 0 : -1;
    }
  };

  const edgeRow = (name, className, columns, make) => {
    const made = element("tr", { className });
    made.append(element("th", { className: "corner", scope: "row" }, name));
    for (const column of columns) {
      const head = element("th", { scope: "col" }, ...make(column));
      head.setAttribute("aria-colindex", column + 2);
      head.dataset.column = column;
      if (className === "numbers") head.classList.add("number");
      made.append(head);
    }
    return made;
  };

  const build = () => {
    rows = visibleRows();
    const columns = pageColumns();
    cells.clear();
    const body = element("tbody");
    for (const row of rows) {
      const line = element("tr");
      const name = data.rows[row].name;
      line.append(element("th", { scope: "row", title: name, className: whole && isPart(name) ? "part" : "" }, name));
      for (const column of columns) {
        const cell = element("td", { tabIndex: -1 }, token(text(row, column)));
        cell.setAttribute("role", "gridcell");
        // Pages leave columns out; the row's name is the first.
        cell.setAttribute("aria-colindex", column + 2);
        cell.dataset.row = row;
        cell.dataset.column = column;
        if (changed(row, column)) cell.classList.add("changed");
        cells.set(key(row, column), cell);
        line.append(cell);
      }
      body.append(line);
    }
    const predictions = data.grid ? null : edgeRow("predicts", "predictions", columns, (column) => {
      const prediction = data.predictions[column];
      if (!prediction) return [""];
      const star = element("span", { className: "star", title: "right: this is the next token" }, "★");
      return prediction.right ? [token(data.texts[prediction.text]), " ", star] : [token(data.texts[prediction.text])];
    });
    const two = data.inputs.some((input) => input.corrupted !== undefined);
    const tokens = (name, field) => edgeRow(name, "inputs", columns, (column) => {
      const at = data.inputs[column][field];
      return at === undefined ? [""] : [token(data.texts[at])];
    });
    // The nearest to the cells first.
    const edges = [];
    if (data.inputs.some((input) => input.text !== undefined)) edges.push(tokens(two ? "clean" : "token", "text"));
    if (two) edges.push(tokens("corrupted", "corrupted"));
    if (noun !== "column") edges.push(edgeRow(noun, "numbers", columns, (column) => [String(data.inputs[column].position)]));
    const head = element("thead");
    const foot = element("tfoot");
    // The predictions stand at the output's end.
    const [above, below] = state.order === "down" ? [edges.reverse(), [predictions]] : [[predictions], edges];
    head.append(...above.filter(Boolean));
    foot.append(...below.filter(Boolean));
    // Sticky edges of several lines stand one beyond the other.
    const stick = (lines, side) => lines.reduce((offset, line) => {
      for (const cell of line.children) cell.style[side] = `${offset}px`;
      return offset + (line.className === "numbers" ? 22 : 24);
    }, 0);
    stick([...head.children], "top");
    stick([...foot.children].reverse(), "bottom");
    const grid = byId("grid");
    grid.replaceChildren(head, body, foot);
    grid.setAttribute("aria-colcount", data.inputs.length + 1);
    byId("none").hidden = rows.length > 0 || data.rows.length === 0;
    byId("pages").hidden = pageCount < 2;
    if (columns.length) {
      const [first, last] = [data.inputs[columns[0]].position, data.inputs[columns.at(-1)].position];
      byId("page-text").textContent = `${nouns} ${first} to ${last}, page ${state.page + 1} of ${pageCount}`;
    }
    byId("page-back").disabled = state.page === 0;
    byId("page-on").disabled = state.page === pageCount - 1;
    paintAll();
    if (!rows.includes(state.row)) state.row = rows[0] ?? null;
    if (!columns.includes(state.column)) state.column = columns[0] ?? 0;
    rove();
  };

  // Exactly one cell can be reached with the Tab key; the arrows do the rest.
  const rove = () => {
    for (const cell of document.querySelectorAll("#grid td[tabindex='0']")) cell.tabIndex = -1;
    const cell = cells.get(key(state.row, state.column));
    if (cell) cell.tabIndex = 0;
    return cell;
  };

  const focusCell = (row, column) => {
    state.row = row;
    if (pageOf(column) !== state.page) { state.page = pageOf(column); state.column = column; build(); }
    state.column = column;
    const cell = rove();
    cell?.focus();
    // Sticky edges would cover what the browser thinks is in view.
    if (cell) {
      const box = byId("scroll").getBoundingClientRect();
      const area = cell.getBoundingClientRect();
      const grid = byId("grid");
      const edge = { left: 110, top: grid.tHead.offsetHeight + 8, right: 12, bottom: grid.tFoot.offsetHeight + 8 };
      const scroll = byId("scroll");
      if (area.left < box.left + edge.left) scroll.scrollLeft -= box.left + edge.left - area.left;
      if (area.right > box.right - edge.right) scroll.scrollLeft += area.right - box.right + edge.right;
      if (area.top < box.top + edge.top) scroll.scrollTop -= box.top + edge.top - area.top;
      if (area.bottom > box.bottom - edge.bottom) scroll.scrollTop += area.bottom - box.bottom + edge.bottom;
    }
  };

  // --- The panel -------------------------------------------------------------------------------------------------------

  // The tokens of the input, each on the colour of the row's number there.
  const colored = (row, current) => {
    const text = element("p", { className: "colored" });
    data.inputs.forEach((input, column) => {
      const number = value(row, column);
      const rgb = color(measure(), number);
      const part = element("span", { title: short(measure(), number) }, plain(data.texts[input.text]));
      if (rgb) { part.style.background = `rgb(${rgb.join(" ")})`; part.style.color = ink(rgb); }
      if (column === current) part.className = "current";
      text.append(part);
    });
    return text;
  };

  const show = (row, column) => {
    const input = data.inputs[column];
    const facts = element("tbody");
    const fact = (name, ...content) => {
      const line = element("tr", {}, element("th", { scope: "row" }, name), element("td", {}, ...content));
      facts.append(line);
      return line;
    };
    if (noun !== "column") fact(noun, String(input.position));
    if (input.text !== undefined) fact(input.corrupted === undefined ? "token" : "clean token", token(data.texts[input.text]));
    if (input.corrupted !== undefined) fact("corrupted token", token(data.texts[input.corrupted]));
    if (!data.grid) fact("top token", token(text(row, column)), ` (id ${data.rows[row].ids[column]})`);
    if (changed(row, column)) fact("was", token(data.texts[data.rows[row].before[column]]));
    const prediction = data.predictions[column];
    if (prediction) fact("model predicts", token(data.texts[prediction.text]), ...(prediction.right ? [" ", element("span", { className: "star" }, "★")] : []));
    data.measures.forEach((one, index) => {
      const line = fact(one.heading, short(one, data.rows[row].values[index]?.[column] ?? null));
      if (index === state.measure) line.className = "current";
    });
    const content = [element("h2", {}, data.rows[row].name), element("table", {}, facts)];
    if (data.grid && input.text !== undefined) content.push(element("h3", {}, "The row as text"), colored(row, column));
    const best = data.rows[row].top_k?.[column];
    if (best?.length) {
      const list = element("ol");
      for (const [at, probability] of best) {
        const inner = element("div", { className: "bar-inner" });
        inner.style.width = `${Math.min(1, Math.max(0, probability ?? 0)) * 100}%`;
        const shown = probability === null ? "–" : short({ unit: "probability" }, probability).replace("+", "");
        list.append(element("li", {}, token(data.texts[at]), shown, element("div", { className: "bar-outer" }, inner)));
      }
      content.push(element("h3", {}, "Likeliest next tokens"), list);
    }
    byId("panel").replaceChildren(...content);
    for (const marked of document.querySelectorAll("#grid .here")) marked.classList.remove("here");
    cells.get(key(row, column))?.parentElement.classList.add("here");
    for (const head of document.querySelectorAll(`#grid th[data-column="${column}"]`)) head.classList.add("here");
  };
  const cellOf = (event) => {
    const cell = event.target.closest?.("#grid td");
    return cell ? [Number(cell.dataset.row), Number(cell.dataset.column)] : null;
  };
  const showCurrent = () => { if (cells.has(key(state.row, state.column)) && byId("panel").querySelector("h2")) show(state.row, state.column); };

  // --- What a reader can do ----------------------------------------------------------------------------------------------

  const setMeasure = (index) => {
    state.measure = (index + data.measures.length) % data.measures.length;
    if (state.order === "high" || state.order === "low") build(); else paintAll();
    showCurrent();
    say(measure().heading);
  };
  const setPage = (page) => {
    state.page = Math.min(pageCount - 1, Math.max(0, page));
    build();
    byId("scroll").scrollLeft = 0;
    say(byId("page-text").textContent);
  };
  const setOrder = (order) => { state.order = order; byId("order").value = order; build(); say(byId("order").selectedOptions[0].textContent); };
  const setValues = (on) => {
    if (data.grid) return;
    state.values = on;
    byId("values").checked = on;
    paintAll();
  };
  const rebuildAndSay = () => { build(); say(`${rows.length} rows`); };

  byId("measures").hidden = Boolean(data.grid);
  data.measures.forEach((one, index) => {
    const button = element("button", { type: "button", title: one.heading }, one.name);
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => setMeasure(index));
    button.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      setMeasure(index + step);
      byId("measures").children[state.measure].focus();
    });
    byId("measures").append(button);
  });
  byId("order").value = state.order;
  byId("filter").addEventListener("input", (event) => { state.filter = event.target.value; rebuildAndSay(); });
  byId("kind").addEventListener("change", (event) => { state.kind = event.target.value; rebuildAndSay(); });
  byId("order").addEventListener("change", (event) => setOrder(event.target.value));
  byId("values")?.addEventListener("change", (event) => setValues(event.target.checked));
  byId("theme").addEventListener("click", setTheme);
  byId("help-open").addEventListener("click", () => byId("help").showModal());
  byId("page-back").addEventListener("click", () => setPage(state.page - 1));
  byId("page-on").addEventListener("click", () => setPage(state.page + 1));

  const grid = byId("grid");
  grid.addEventListener("mouseover", (event) => { const at = cellOf(event); if (at) show(...at); });
  grid.addEventListener("focusin", (event) => {
    const at = cellOf(event);
    if (!at) return;
    [state.row, state.column] = at;
    rove();
    show(...at);
  });
  grid.addEventListener("mouseleave", showCurrent);

  const move = (event) => {
    const place = rows.indexOf(state.row);
    const last = data.inputs.length - 1;
    const moves = {
      ArrowLeft: [place, state.column - 1], ArrowRight: [place, state.column + 1],
      ArrowUp: [place - 1, state.column], ArrowDown: [place + 1, state.column],
      PageUp: [place - 10, state.column], PageDown: [place + 10, state.column],
      Home: [event.ctrlKey ? 0 : place, 0], End: [event.ctrlKey ? rows.length - 1 : place, last],
    };
    const to = moves[event.key];
    if (!to || event.altKey || event.metaKey) return false;
    const row = Math.min(rows.length - 1, Math.max(0, to[0]));
    const column = Math.min(last, Math.max(0, to[1]));
    focusCell(rows[row], column);
    return true;
  };

  document.addEventListener("keydown", (event) => {
    if (byId("help").open) return;
    const typing = event.target.matches("input[type='search'], select");
    if (typing) {
      if (event.key === "Escape" && event.target.id === "filter") { event.target.value = ""; state.filter = ""; rebuildAndSay(); }
      return;
    }
    if (event.target.closest("#grid td") && move(event)) { event.preventDefault(); return; }
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    // With nothing in focus, an arrow enters the grid.
    if (event.target === document.body && event.key.startsWith("Arrow") && rows.length) { event.preventDefault(); focusCell(state.row, state.column); return; }
    const actions = {
      m: () => setMeasure(state.measure + 1), M: () => setMeasure(state.measure - 1),
      v: () => setValues(!state.values), o: () => setOrder(state.order === "down" ? "up" : "down"),
      t: setTheme, "/": () => byId("filter").focus(), "?": () => byId("help").showModal(),
      ",": () => setPage(state.page - 1), ".": () => setPage(state.page + 1),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    const inGrid = event.target.closest("#grid");
    actions[event.key]();
    // Rebuilding took the focus away with the old cell.
    if (inGrid && !document.activeElement?.closest("#grid") && document.activeElement === document.body) rove()?.focus();
  });

  build();
  // The panel has the row as text, which should not wait to be found.
  if (data.grid && state.row !== null && data.inputs.length) show(state.row, state.column);
