  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;

  // --- Small helpers -------------------------------------------------------------------------------------------------

  const element = (tag, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  };
  const say = (text) => { byId("status").textContent = text; };

  // A token: its space marks step back, its own direction holds.
  const token = (text) => {
    const shown = element("bdi", { dir: "auto" });
    for (const part of text.split(/(·+)/u)) {
      if (part === "") continue;
      shown.append(part.startsWith("·") ? element("span", { className: "space" }, part) : part);
    }
    return shown;
  };
  // A token within a text: spaces as they are.
  const plain = (text) => text.replaceAll("·", " ");
  const spoken = (text) => text.replaceAll("·", " ").replaceAll("⏎", " line end ").replaceAll("⇥", " tab ").trim() || "space";

  // --- Colours: the same as in the pictures, from the stops that were sent along --------------------------------------

  const transforms = {
    linear: (value) => value,
    root: (value) => Math.sign(value) * Math.sqrt(Math.abs(value)),
    logarithm: (value) => Math.sign(value) * Math.log1p(Math.abs(value)),
  };
  const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  const color = (scale, value) => {
    if (value === null || value === undefined) return null;
    const apply = transforms[scale.transform];
    const low = apply(scale.low);
    const fraction = Math.min(1, Math.max(0, (apply(value) - low) / (apply(scale.high) - low)));
    const place = fraction * (scale.colors.length - 1);
    const index = Math.min(Math.floor(place), scale.colors.length - 2);
    const [from, to] = [scale.colors[index], scale.colors[index + 1]];
    return from.map((channel, at) => Math.round(channel + (to[at] - channel) * (place - index)));
  };
  const ink = (rgb) => {
    const [r, g, b] = rgb.map((channel) => {
      const value = channel / 255;
      return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    });
    const luminance = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    return (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) ? "#000" : "#fff";
  };

  const setTheme = () => {
    const dark = root.dataset.theme === "dark" || (root.dataset.theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
    say(dark ? "light" : "dark");
  };

