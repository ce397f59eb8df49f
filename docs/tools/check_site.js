// What docs/tools/check_site.py asks of a page. Each function returns something that JSON can hold.

// Elements that stand out of the window without a frame of their own that scrolls.
function tooWide(width) {
  const root = document.documentElement, found = [];
  if (root.scrollWidth > width) found.push("the page scrolls sideways");
  for (const element of document.querySelectorAll("article *")) {
    const box = element.getBoundingClientRect();
    if (!box.width || (box.right <= width + 1 && box.left >= -1)) continue;
    const scrolls = frame => ["auto", "scroll", "hidden"].includes(getComputedStyle(frame).overflowX);
    let frame = element.parentElement;
    while (frame && !scrolls(frame)) frame = frame.parentElement;
    if (frame && frame !== document.body && frame !== root) continue;
    const name = element.tagName.toLowerCase(), text = element.textContent.slice(0, 60);
    found.push(`${name} reaches to ${Math.round(box.right)}: ${text}`);
  }
  return found.slice(0, 5);
}

// Pictures that did not load. One that is hidden in this theme need not.
async function missingPictures() {
  const pictures = [...document.images].filter(picture => getComputedStyle(picture).display !== "none");
  pictures.forEach(picture => { picture.loading = "eager"; });
  await Promise.all(pictures.map(picture => picture.decode().catch(() => 0)));
  return pictures.filter(picture => !picture.naturalWidth).map(picture => picture.src);
}

// Contrast of the text with its background, as WCAG 2 defines it; below 4.5 it is hard to read.
function contrast() {
  const channels = text => text.match(/[\d.]+/g).map(Number);
  const linear = value => value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = color => color.slice(0, 3).map(value => linear(value / 255))
    .reduce((sum, value, i) => sum + value * [0.2126, 0.7152, 0.0722][i], 0);
  const text = channels(getComputedStyle(document.querySelector("article p, article td, p")).color);
  const page = channels(getComputedStyle(document.body).backgroundColor);
  const alpha = text[3] ?? 1, mixed = page.map((value, i) => text[i] * alpha + value * (1 - alpha));
  const [low, high] = [luminance(mixed), luminance(page)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

// How many pages the search lists for a word.
async function searchHits(word) {
  document.querySelector("#__search").checked = true;
  const field = document.querySelector("[data-md-component=search-query]");
  field.focus();
  field.value = word;
  for (const kind of ["input", "keyup"]) field.dispatchEvent(new Event(kind, { bubbles: true }));
  for (let tries = 0; tries < 200; tries++) {
    const hits = document.querySelectorAll(".md-search-result__item").length;
    if (hits) return hits;
    await new Promise(resolve => setTimeout(resolve, 50));
  }
  return 0;
}

// The colour schemes that the switch goes through.
function schemes() {
  const seen = [];
  for (let i = 0; i < 3; i++) {
    [...document.querySelectorAll(".md-header__option label")].find(label => !label.hidden).click();
    seen.push(document.body.getAttribute("data-md-color-scheme"));
  }
  return seen;
}

function neighbours() {
  return document.querySelectorAll(".md-footer__link").length;
}

function repository() {
  return document.querySelector(".md-source")?.href ?? "";
}

// Entries of the API page that begin with an underscore.
function privateEntries() {
  const headings = [...document.querySelectorAll(".doc-heading")].map(heading => heading.textContent);
  return headings.filter(text => /(^|[.\s])_\w/.test(text));
}

// The controls of the page "Try it" that do not change the picture, with the picture's shapes once it is there.
async function deadControls() {
  const picture = document.getElementById("play-picture");
  for (let tries = 0; !picture.querySelector(".play-star") && tries < 200; tries++)
    await new Promise(resolve => setTimeout(resolve, 50));
  const look = () => [...picture.children].map(shape => shape.style.transform + shape.style.visibility).join();
  const dead = [];
  const change = (name, value) => {
    const control = document.getElementById(`play-${name}`), before = look();
    control.value = value;
    control.dispatchEvent(new Event("input", { bubbles: true }));
    if (look() === before) dead.push(`${name} = ${value}`);
  };
  change("step", 5);
  for (const value of [0, 2]) change("ratio", value);
  for (const value of [1, 2]) change("temperature", value);
  for (const value of [0, 1]) change("support", value);
  for (const value of ["supcon", "bcl", "spcl"]) change("method", value);
  const before = document.getElementById("play-step").value;
  document.getElementById("play-button").click();
  await new Promise(resolve => setTimeout(resolve, 1500));
  if (document.getElementById("play-step").value === before) dead.push("play");
  return dead.concat(picture.querySelectorAll(".play-dot").length === 80 ? [] : ["80 points are missing"]);
}
