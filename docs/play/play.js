// The page "Try it": shows the frames of frames.json, which docs/tools/play.py computes with the library.
(() => {
  const get = name => document.getElementById(`play-${name}`);
  const source = new URL("frames.json", document.currentScript.src);
  const colors = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"]; // Okabe and Ito
  const names = ["blue", "orange", "green", "pink"];
  const star = "0,-9 2.6,-3 9,-2.6 4,1.8 5.6,8 0,4.6 -5.6,8 -4,1.8 -9,-2.6 -2.6,-3";
  let data, dots, stars, timer;

  function draw(kind, attributes) {
    const shape = document.createElementNS("http://www.w3.org/2000/svg", kind);
    for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
    get("picture").append(shape);
    return shape;
  }

  function fill(select, values, label, chosen) {
    values.forEach((value, i) => select.add(new Option(label(value), i, i === chosen, i === chosen)));
  }

  // A shape turns to its new angle the short way round.
  function turn(shape, byte, radius) {
    shape.style.visibility = byte === 255 ? "hidden" : "visible";
    if (byte === 255) return;
    const before = shape.angle ?? 0, target = 360 * byte / 255;
    shape.angle = before + ((target - before) % 360 + 540) % 360 - 180;
    shape.style.transform = `rotate(${-shape.angle}deg) translate(${radius}px) rotate(${shape.angle}deg)`;
  }

  function show() {
    const method = get("method").value, support = get("support");
    support.disabled = method !== "spcl";
    const k = support.disabled ? 0 : support.value;
    const run = data.runs[`${method} ${get("temperature").value} ${k} ${get("ratio").value}`];
    const points = data.classes * data.shown, size = points + 2 * data.classes, step = Number(get("step").value);
    const bytes = Uint8Array.from(atob(run), letter => letter.charCodeAt(0)).subarray(step * size, (step + 1) * size);
    // Rows of one angle would hide one another: each has a radius of its own.
    dots.forEach((dot, i) => turn(dot, bytes[i], 78 + 18 * (i % data.shown) / data.shown));
    stars.forEach((shape, c) => turn(shape, bytes[points + c], 112));
    get("now").textContent = `step ${data.steps[step]}`;
    const recalls = names.map((name, c) => `${name} ${bytes[points + data.classes + c]}%`);
    get("recall").textContent = `Recall, the most frequent class first: ${recalls.join(", ")}.`;
  }

  function stop() {
    clearInterval(timer);
    timer = undefined;
    get("button").textContent = "Play";
  }

  function play() {
    if (timer) return stop();
    const slider = get("step");
    if (slider.value === slider.max) slider.value = 0;
    get("button").textContent = "Pause";
    show();
    timer = setInterval(() => {
      slider.value = Number(slider.value) + 1;
      show();
      if (slider.value === slider.max) stop();
    }, 700);
  }

  async function start() {
    data = await (await fetch(source)).json();
    fill(get("temperature"), data.temperatures, String, 0);
    fill(get("support"), data.supports, String, data.supports.length - 1);
    fill(get("ratio"), data.ratios, ratio => `${ratio} : 1`, 1);
    get("step").max = data.steps.length - 1;
    draw("circle", { r: 100, class: "play-circle" });
    dots = Array.from({ length: data.classes * data.shown }, (_, i) =>
      draw("circle", { r: 3.2, fill: colors[Math.floor(i / data.shown)], class: "play-dot" }));
    stars = colors.map(color => draw("polygon", { points: star, fill: color, class: "play-star" }));
    for (const name of ["method", "temperature", "support", "ratio", "step"]) get(name).addEventListener("input", show);
    get("button").addEventListener("click", play);
    show();
  }
  start();
})();
