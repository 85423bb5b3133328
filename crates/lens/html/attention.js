  const state = { head: 0, to: false, token: null, held: false };
  const count = data.tokens.length;
  data.colors = data.stops.map(channels);
  const head = () => data.heads[state.head];
  const weight = (one, query, key) => (key > query ? null : one.pattern[query][key] / 1000);

  // --- Heatmaps ----------------------------------------------------------------------------------------------------------

  const draw = (canvas, one) => {
    canvas.width = Math.max(1, count);
    canvas.height = Math.max(1, count);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    for (let query = 0; query < count; query += 1) {
      for (let key = 0; key <= query; key += 1) {
        const [red, green, blue] = color(data, weight(one, query, key));
        pixels.data.set([red, green, blue, 255], (query * count + key) * 4);
      }
    }
    context.putImageData(pixels, 0, 0);
  };
  // A cell of the large one has whole pixels.
  const cellSize = Math.max(1, Math.min(28, Math.floor(560 / Math.max(1, count))));

  // --- The text ------------------------------------------------------------------------------------------------------------

  const spans = data.tokens.map((text, index) => {
    const span = element("span", { tabIndex: index === 0 ? 0 : -1 }, plain(text));
    span.setAttribute("role", "option");
    span.dataset.index = index;
    return span;
  });
  for (const span of spans) {
    byId("text").append(span);
    if (span.textContent.endsWith("⏎")) byId("text").append(element("br"));
  }

  const percent = (value) => `${(value * 100).toFixed(value < 0.1 ? 1 : 0)}%`;
  const paint = () => {
    const here = state.token;
    const seen = spans.map((span, other) => {
      if (here === null) return null;
      return state.to ? weight(head(), other, here) : weight(head(), here, other);
    });
    spans.forEach((span, index) => {
      const rgb = seen[index] === null ? null : color(data, seen[index]);
      span.style.background = rgb ? `rgb(${rgb.join(" ")})` : "";
      span.style.color = rgb ? ink(rgb) : "";
      span.classList.toggle("unseen", here !== null && !rgb);
      span.classList.toggle("here", index === here);
      span.classList.toggle("held", index === here && state.held);
      span.setAttribute("aria-selected", String(index === here));
      span.tabIndex = index === (here ?? 0) ? 0 : -1;
      span.title = `${index}${seen[index] === null ? "" : `: ${percent(seen[index])}`}`;
    });
    if (here === null) {
      byId("says").textContent = state.to ? "Choose a token to see from where it is looked at." : "Choose a token to see where it looks.";
      return;
    }
    const best = seen.map((value, index) => [value ?? 0, index]).sort((a, b) => b[0] - a[0]).slice(0, 3).filter(([value]) => value > 0);
    const listed = best.map(([value, index]) => `${spoken(data.tokens[index])} (${index}) ${percent(value)}`).join(", ");
    const name = `${spoken(data.tokens[here])} (${here})`;
    byId("says").textContent = state.to ? `${name} is looked at from ${listed || "nowhere"}` : `${name} looks at ${listed}`;
  };

  const choose = (token, held) => {
    state.token = token;
    state.held = held;
    paint();
  };
  const setHead = (index) => {
    state.head = (index + data.heads.length) % data.heads.length;
    byId("head").value = String(state.head);
    byId("name").textContent = head().name;
    for (const [at, button] of [...byId("heads").children].entries()) button.setAttribute("aria-pressed", String(at === state.head));
    const large = byId("large");
    draw(large, head());
    large.style.width = `${count * cellSize}px`;
    large.style.height = `${count * cellSize}px`;
    large.setAttribute("aria-label", `Attention of ${head().name}`);
    paint();
  };
  const setDirection = (to) => {
    state.to = to;
    for (const [at, button] of [...byId("direction").children].entries()) {
      button.setAttribute("aria-checked", String((at === 1) === to));
      button.tabIndex = (at === 1) === to ? 0 : -1;
    }
    paint();
    say(to ? "from where it is looked at" : "where it looks");
  };

  // --- What a reader can do ----------------------------------------------------------------------------------------------

  data.heads.forEach((one, index) => {
    byId("head").append(element("option", { value: String(index) }, one.name));
    const small = element("canvas");
    const button = element("button", { type: "button" }, small, one.name);
    draw(small, one);
    button.addEventListener("click", () => { setHead(index); say(one.name); });
    byId("heads").append(button);
  });
  byId("heads").hidden = data.heads.length < 2;
  ["looks at", "is looked at from"].forEach((name, index) => {
    const button = element("button", { type: "button" }, name);
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => setDirection(index === 1));
    button.addEventListener("keydown", (event) => {
      if (!["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"].includes(event.key)) return;
      event.preventDefault();
      setDirection(!state.to);
      byId("direction").children[state.to ? 1 : 0].focus();
    });
    byId("direction").append(button);
  });
  byId("head").addEventListener("change", (event) => setHead(Number(event.target.value)));
  byId("theme").addEventListener("click", setTheme);
  byId("help-open").addEventListener("click", () => byId("help").showModal());

  const indexOf = (event) => {
    const span = event.target.closest?.("#text span");
    return span ? Number(span.dataset.index) : null;
  };
  const text = byId("text");
  text.addEventListener("mouseover", (event) => { const at = indexOf(event); if (at !== null && !state.held) choose(at, false); });
  text.addEventListener("focusin", (event) => { const at = indexOf(event); if (at !== null && at !== state.token) choose(at, state.held); });
  text.addEventListener("click", (event) => {
    const at = indexOf(event);
    if (at !== null) choose(at, !(state.held && at === state.token));
  });

  const large = byId("large");
  large.addEventListener("mousemove", (event) => {
    const [key, query] = [event.offsetX, event.offsetY].map((offset) => Math.min(count - 1, Math.max(0, Math.floor(offset / cellSize))));
    const value = weight(head(), query, key);
    if (!state.held) choose(state.to ? key : query, false);
    large.title = value === null ? "" : `${spoken(data.tokens[query])} (${query}) looks at ${spoken(data.tokens[key])} (${key}): ${percent(value)}`;
  });

  document.addEventListener("keydown", (event) => {
    if (byId("help").open || event.ctrlKey || event.altKey || event.metaKey || event.target.matches("select")) return;
    const moves = { ArrowLeft: (state.token ?? 1) - 1, ArrowRight: (state.token ?? -1) + 1, Home: 0, End: count - 1 };
    if (Object.hasOwn(moves, event.key) && count && !event.target.closest("#direction")) {
      event.preventDefault();
      const to = Math.min(count - 1, Math.max(0, moves[event.key]));
      choose(to, state.held);
      spans[to].focus();
      return;
    }
    const actions = {
      "[": () => setHead(state.head - 1), "]": () => setHead(state.head + 1), d: () => setDirection(!state.to),
      t: setTheme, "?": () => byId("help").showModal(),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    actions[event.key]();
  });

  byId("gradient").style.background = `linear-gradient(to right, ${data.stops.join(", ")})`;
  byId("ticks").replaceChildren(...data.ticks.map((tick) => {
    const made = element("span", {}, tick.label);
    made.style.left = `${tick.fraction * 100}%`;
    return made;
  }));
  setDirection(false);
  setHead(0);
  if (count) choose(count - 1, false);
